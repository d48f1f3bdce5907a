"""What the user names as input."""

from pathlib import Path

import pytest

from seamless_d2.errors import UserError
from seamless_d2.prediction.batch.sources import find_sources


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folders_are_searched_and_names_unique(tmp_path: Path) -> None:
    images = tmp_path / "images"
    touch(images / "a.jpg", images / "a.png", images / "deep" / "B.JPG", images / "deep" / "clip.MP4")
    touch(images / "notes.md", images / ".hidden.jpg", tmp_path / "more" / "a.jpg")
    found = find_sources([images, tmp_path / "more", images / "a.jpg"])
    assert [(s.name, s.kind) for s in found] == [
        ("a", "image"),
        ("a_png", "image"),
        ("deep/B", "image"),
        ("deep/clip", "video"),
        ("a_jpg", "image"),
        ("a_jpg_2", "image"),
    ]


def test_what_is_passed_over_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = ["a.gif", "b.AVIF", "c.jp2", "notes.md", "deep/d.csv", "deep/e.jpg", ".hidden.md"]
    touch(*(tmp_path / name for name in names))
    assert [s.relative for s in find_sources([tmp_path])] == ["a.gif", "b.AVIF", "c.jp2", "deep/e.jpg"]
    assert "2 files that are neither images nor videos are passed over" in capsys.readouterr().out


def test_patterns(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "1" / "a.jpg", tmp_path / "in" / "2" / "a.jpg", tmp_path / "in" / "2" / "[b].png")
    found = find_sources([f"{tmp_path}/in/*/*.jpg"])
    assert [(s.name, s.relative) for s in found] == [("1/a", "1/a.jpg"), ("2/a", "2/a.jpg")]
    assert len(find_sources([f"{tmp_path}/**/*"])) == 3
    # A file that is called like a pattern is a file.
    assert [s.name for s in find_sources([tmp_path / "in" / "2" / "[b].png"])] == ["[b]"]
    with pytest.raises(UserError, match="no file matches"):
        find_sources([f"{tmp_path}/*.tif"])


def test_lists_and_cameras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "lists" / "x" / "a.jpg", tmp_path / "abs" / "b.jpg", tmp_path / "here.png")
    monkeypatch.chdir(tmp_path)
    listing = tmp_path / "lists" / "all.txt"
    listing.write_text(f"# images\nx/a.jpg\n\n{tmp_path}/abs/b.jpg\nhere.png\n../missing.jpg\n")
    found = find_sources([listing, "0"])
    assert [(s.name, s.kind) for s in found] == [
        ("x/a", "image"),
        ("b", "image"),
        ("here", "image"),
        ("missing", "image"),
        ("camera0", "camera"),
    ]
    assert found[0].path == tmp_path / "lists" / "x" / "a.jpg" and found[4].path == 0


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_sources([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no images or videos"):
        find_sources([tmp_path])
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(UserError, match=r"empty\.txt names no file"):
        find_sources([tmp_path / "empty.txt"])
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match=r"binary\.txt is not UTF-8"):
        find_sources([tmp_path / "binary.txt"])


def test_results_do_not_become_inputs(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "a.jpg").touch()
    (tmp_path / "out" / "a_labelled.jpg").touch()
    assert [s.name for s in find_sources([tmp_path], tmp_path / "out")] == ["a"]
    with pytest.raises(UserError, match="is input and output"):
        find_sources([tmp_path], tmp_path / "out" / "..")


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "a.jpg").touch()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "deep" / "loop").symlink_to(tmp_path / "in")
    assert [s.name for s in find_sources([tmp_path / "in"])] == ["link/a"]


def test_a_video_beside_the_folder_of_its_frames(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "000001.jpg").touch()
    (tmp_path / "clip.mp4").touch()
    assert [s.name for s in find_sources([tmp_path])] == ["clip/000001", "clip_mp4"]


def test_lists_of_absolute_paths_and_odd_lines(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "y/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_bytes(f"{tmp_path}/x/1.jpg\r\n{tmp_path}/y/1.jpg\r\n\r\n.\r\n..\r\n".encode())
    assert [s.name for s in find_sources([tmp_path / "list.txt"])] == ["x/1", "y/1", "unnamed", "unnamed_2"]


def test_urls(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "list.txt").write_text(f"rtsp://10.0.0.1/live\n{tmp_path}/a.jpg\n")
    urls = [
        "https://example.org/drives/monday%20am.mp4?key=a/b.jpg",
        "RTSP://me:secret@cam.local:554/stream1",
        "rtsp://cam.local/stream1",
        "http://[::1]:8000",
        tmp_path / "list.txt",
    ]
    found = find_sources(urls)
    assert [(s.name, s.kind) for s in found] == [
        ("example.org_monday_am", "stream"),
        ("cam.local_stream1", "stream"),
        ("cam_local_stream1", "stream"),
        ("_1", "stream"),
        ("10.0.0.1_live", "stream"),
        ("a", "image"),
    ]
    assert found[1].path == "rtsp://me:secret@cam.local:554/stream1"
    for wrong, sentence in [
        ("s3://bucket/a.mp4", "s3://bucket/a.mp4 cannot be read: its scheme is none of http, https, rtsp, rtsps"),
        ("foo://x", "foo://x cannot be read"),
        ("https://me:secret@example.org/a.jpg", "https://example.org/a.jpg is an image, and only videos are read"),
    ]:
        with pytest.raises(UserError, match=sentence):
            find_sources([wrong])
