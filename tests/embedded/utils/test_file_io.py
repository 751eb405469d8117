import iopath.common.file_io
import pytest

from projects_maskrcnn.embedded.utils.file_io import PathManager


def test_local_paths(tmp_path):
    path = str(tmp_path / "a" / "b.txt")
    PathManager.mkdirs(str(tmp_path / "a"))
    with PathManager.open(path, "w") as file:
        file.write("text")
    assert PathManager.isfile(path) and PathManager.ls(str(tmp_path / "a")) == ["b.txt"]


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """The URLs asked for; each "download" is a file that holds its own URL."""
    urls = []

    def download(url, folder, *, filename=None, progress=True):
        urls.append(url)
        path = tmp_path / "download"
        path.write_text(url)
        return str(path)

    monkeypatch.setattr(iopath.common.file_io, "download", download)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return urls


@pytest.mark.parametrize("how", ["get_local_path", "open"])
def test_model_zoo_is_where_detectron2_keeps_it(downloads, how):
    path = f"detectron2://ImageNetPretrained/MSRA/{how}.pkl"
    if how == "open":
        PathManager.open(path, "rb").close()
    else:
        PathManager.get_local_path(path)
    assert downloads == [f"https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/{how}.pkl"]
