"""The public names are complete, real and lazy."""

import subprocess
import sys

import stillhouse


def test_every_public_name_can_be_imported() -> None:
    for name in stillhouse.__all__:
        assert getattr(stillhouse, name) is not None


def test_the_lists_of_public_names_agree() -> None:
    assert sorted([*stillhouse._HOME, "__version__"]) == sorted(stillhouse.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(stillhouse, "no_such_name")


def test_importing_the_package_pulls_in_no_torch() -> None:
    script = "import sys, stillhouse; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
