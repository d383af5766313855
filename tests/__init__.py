"""A package, so that no installed one of this name hides it; torch-fidelity brings such a one."""
