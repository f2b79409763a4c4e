"""``python -m models.reference``: train the digits models again; with ``--check``, compare every byte."""

import argparse
import filecmp
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models.errors import UnderstudyError
from models.reference.build import IMAGE_MODEL, MODEL, PICTURE, recorded_trainers, write_repository

_DEFAULT = Path(__file__).parents[2] / "examples" / "model_repository"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 written or the same, 1 different, 2 wrong use."""
    parser = argparse.ArgumentParser(prog="python -m models.reference", description=__doc__)
    parser.add_argument("--path", type=Path, default=_DEFAULT, help="the model repository (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 unless every byte is the same")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            return _check(options.path)
        write_repository(options.path)
    except UnderstudyError as error:
        print(f"models.reference: {error}", file=sys.stderr)
        return 2
    print(f"{options.path}: {MODEL}, {IMAGE_MODEL} and ../{PICTURE} written")
    return 0


def _check(path: Path) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        # Who trained it is the record's business; the check is whether today's libraries make the same bytes.
        made = Path(temporary) / path.resolve().name
        write_repository(made, trained_with=recorded_trainers(path))
        different = _differences(path, made)
    for name in different:
        print(f"{path / name}: differs from what training gives")
    print(f"{path}: {'every byte agrees' if not different else f'{len(different)} files differ'}")
    return 1 if different else 0


def _differences(kept: Path, made: Path) -> list[str]:
    folders = [root / model for root in (kept, made) for model in (MODEL, IMAGE_MODEL)]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    names = {file.relative_to(kept if file.is_relative_to(kept) else made).as_posix() for file in files}
    _, mismatched, missing = filecmp.cmpfiles(kept, made, sorted({*names, f"../{PICTURE}"}), shallow=False)
    return sorted(mismatched + missing)


if __name__ == "__main__":
    sys.exit(main())
