import importlib.util

collect_ignore = [] if importlib.util.find_spec("sphinx") else ["test_site.py"]
