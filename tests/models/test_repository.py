from pathlib import Path

import pytest

from models.errors import ArtifactError, RepositoryError, SpecError
from models.repository import Repository, find_versions, open_version, write_hash
from tests.models.making import write_version


def test_a_version_opens_with_its_spec_and_its_files(tmp_path: Path) -> None:
    write_version(tmp_path, b"graph", files={"weights/part-0.bin": b"external"})
    version = Repository(tmp_path).open("model", 1)
    assert version.spec.name == "model"
    assert version.spec.version == 1
    assert version.artifact_path == tmp_path / "model" / "1" / "model.onnx"
    assert set(version.files) == {"model.onnx", "weights/part-0.bin"}
    assert version.read("model.onnx") == b"graph"


def test_models_and_versions_are_listed_in_order_and_other_folders_are_ignored(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_version(tmp_path, b"graph", version=number)
    for name in ("notes", "03", "0", "-1", "4"):
        (tmp_path / "model" / name).mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.md").write_text("hello")
    repository = Repository(tmp_path)
    assert repository.models() == ["model"]
    assert repository.versions("model") == [1, 2, 10]


def test_what_does_not_exist_is_answered_with_what_does(tmp_path: Path) -> None:
    write_version(tmp_path, b"graph", version=2)
    repository = Repository(tmp_path)
    with pytest.raises(RepositoryError, match=r"no model 'nope'; it holds model"):
        repository.open("nope", 1)
    with pytest.raises(RepositoryError, match=r"no version 9; it has 2"):
        repository.open("model", 9)
    with pytest.raises(RepositoryError, match="no such folder"):
        Repository(tmp_path / "absent")


@pytest.mark.parametrize("name", ["../model", "model/../model", "/model", "", ".", "model/1"])
def test_a_models_name_never_leads_out_of_the_repository(tmp_path: Path, name: str) -> None:
    write_version(tmp_path / "repository", b"graph")
    write_version(tmp_path, b"graph")
    with pytest.raises(RepositoryError, match="no model"):
        Repository(tmp_path / "repository").open(name, 1)


def test_a_changed_byte_of_the_artifact_refuses_to_open(tmp_path: Path) -> None:
    directory = write_version(tmp_path, b"graph")
    (directory / "model.onnx").write_bytes(b"grapH")
    with pytest.raises(ArtifactError, match="refusing to load"):
        open_version(directory)


def test_a_changed_byte_of_external_data_refuses_to_open(tmp_path: Path) -> None:
    directory = write_version(tmp_path, b"graph", files={"model.onnx.data": b"weights"})
    (directory / "model.onnx.data").write_bytes(b"Weights")
    with pytest.raises(ArtifactError):
        open_version(directory)


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_a_file_that_is_added_removed_or_renamed_refuses_to_open(tmp_path: Path, change: str) -> None:
    directory = write_version(tmp_path, b"graph", files={"part": b"weights"})
    if change == "added":
        (directory / "more").write_bytes(b"")
    elif change == "removed":
        (directory / "part").unlink()
    else:
        (directory / "part").rename(directory / "trap")
    with pytest.raises(ArtifactError):
        open_version(directory)


def test_a_changed_field_of_model_yaml_refuses_to_open(tmp_path: Path) -> None:
    directory = write_version(tmp_path, b"graph")
    file = directory / "model.yaml"
    file.write_text(file.read_text().replace("max_batch_size: 8", "max_batch_size: 9"))
    with pytest.raises(ArtifactError):
        open_version(directory)


def test_a_comment_in_model_yaml_changes_nothing(tmp_path: Path) -> None:
    directory = write_version(tmp_path, b"graph")
    file = directory / "model.yaml"
    file.write_text(f"# reviewed\n{file.read_text()}")
    assert open_version(directory).spec.max_batch_size == 8


def test_a_model_yaml_without_sha256_refuses_to_open(tmp_path: Path) -> None:
    directory = write_version(tmp_path, b"graph", hashed=False)
    file = directory / "model.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "sha256" not in line))
    with pytest.raises(SpecError, match="sha256"):
        open_version(directory)


def test_a_file_that_changes_after_opening_is_not_read(tmp_path: Path) -> None:
    directory = write_version(tmp_path, b"graph", files={"part": b"weights"})
    version = open_version(directory)
    version.verify(read="model.onnx")
    (directory / "model.onnx").write_bytes(b"other")
    (directory / "part").write_bytes(b"other")
    with pytest.raises(ArtifactError):
        version.read("model.onnx")
    with pytest.raises(ArtifactError, match="part"):
        version.verify(read="model.onnx")
    (directory / "model.onnx").unlink()
    with pytest.raises(ArtifactError):
        version.read("model.onnx")
    with pytest.raises(ArtifactError, match="a file of this version"):
        version.read("../../secret")


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    directory = write_version(tmp_path, b"graph")
    (tmp_path / "outside").write_bytes(b"weights")
    (directory / "part").symlink_to(tmp_path / "outside")
    with pytest.raises(RepositoryError, match="symbolic link"):
        open_version(directory)


def test_writing_the_hash_leaves_comments_and_formatting_alone(tmp_path: Path) -> None:
    directory = write_version(tmp_path, b"graph", hashed=False)
    before = (
        "# my model\r\nbackend:   onnxruntime\r\nartifact: model.onnx # here\r\n"
        "sha256: 0000  # written by the tool\r\nmax_batch_size: 8\r\n"
        "inputs:  [{name: IN,  datatype: FP32, shape: [-1, 3]}]\r\n"
        "outputs: [{name: OUT, datatype: FP32, shape: [-1, 3]}]\r\n"
    )
    (directory / "model.yaml").write_bytes(before.encode())
    digest = write_hash(directory)
    assert (directory / "model.yaml").read_bytes().decode() == before.replace("0000", digest)
    assert open_version(directory).spec.sha256 == digest
    assert write_hash(directory) == digest


def test_writing_the_hash_appends_the_line_where_there_is_none(tmp_path: Path) -> None:
    directory = write_version(tmp_path, b"graph", hashed=False)
    file = directory / "model.yaml"
    before = "".join(line for line in file.read_text().splitlines(True) if "sha256" not in line).rstrip("\n")
    file.write_text(before)
    digest = write_hash(directory)
    assert file.read_text() == f"{before}\nsha256: {digest}\n"
    assert open_version(directory).spec.sha256 == digest


def test_a_model_yaml_that_cannot_take_the_line_is_left_as_it_is(tmp_path: Path) -> None:
    directory = write_version(tmp_path, b"graph", hashed=False)
    flow = (
        "{backend: onnxruntime, artifact: model.onnx, max_batch_size: 0,"
        " inputs: [{name: a, datatype: INT8, shape: [1]}], outputs: [{name: b, datatype: INT8, shape: [1]}]}\n"
    )
    (directory / "model.yaml").write_text(flow)
    with pytest.raises(SpecError):
        write_hash(directory)
    assert (directory / "model.yaml").read_text() == flow
    assert sorted(path.name for path in directory.iterdir()) == ["model.onnx", "model.yaml"]


def test_a_version_folder_must_be_named_by_an_integer(tmp_path: Path) -> None:
    directory = write_version(tmp_path, b"graph")
    directory.rename(tmp_path / "model" / "latest")
    with pytest.raises(RepositoryError, match="positive integer"):
        open_version(tmp_path / "model" / "latest")


def test_versions_are_found_in_a_version_a_model_and_a_repository(tmp_path: Path) -> None:
    first, second = write_version(tmp_path, b"graph"), write_version(tmp_path, b"graph", version=2)
    assert find_versions(first) == [first]
    assert find_versions(tmp_path / "model") == [first, second]
    assert find_versions(tmp_path) == [first, second]
    with pytest.raises(RepositoryError, match=r"found no model\.yaml"):
        find_versions(tmp_path / "absent")
