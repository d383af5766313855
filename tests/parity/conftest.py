import diffusers
import pytest

from genjax.pretrained.published import DIFFUSERS, records


@pytest.fixture(scope="session", autouse=True)
def opened_without_accelerate():
    """Let diffusers open classes that keep some layers in float32 if others are loaded as another.

    It needs another package, accelerate, to do so, and all layers of these tests are float32.
    """
    with pytest.MonkeyPatch.context() as patch:
        for record in records():
            if record.library is DIFFUSERS:
                patch.setattr(getattr(diffusers, record.name), "_keep_in_fp32_modules", None)
        yield
