"""`evaluate.py` as people run it: the files it writes, a report that loads nothing, bad input, and going on."""

from __future__ import annotations

import csv
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import data_layouts as layouts
import evaluate
import numpy as np
import pytest
import SimpleITK

pytest.importorskip("vtkmodules", reason="VTK is not installed")

from FlareSegmentTrainingSlicerLib import evaluation_pictures

from FlareSegmentTrainingLib.evaluation import html_report, predictors
from FlareSegmentTrainingLib.evaluation import roles as names_of_roles
from FlareSegmentTrainingLib.evaluation.figures import summarize


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, dict, str]:
    """Exit status, the JSON object if it was asked for, and standard error."""
    status = evaluate.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1]) if "--json" in arguments and status == 0 else {}
    return status, result, captured.err


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class Page(HTMLParser):
    """What a page would load, what it links to, its element ids, and tags that were not closed."""

    VOID = frozenset({"meta", "img", "br", "line", "circle", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [value for name, value in values.items() if name in ("src", "srcset", "poster", "data")]
        if tag == "link":
            self.loads.append(values.get("href", ""))
        elif "href" in values:
            self.links.append(values["href"])
        if "id" in values:
            self.ids.add(values["id"])

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of a few bytes: the tests of the figures need no better."""

    def draw(folder, name, volume, labels, reference, organs):
        (folder / f"{name}_axial.jpg").write_bytes(b"picture")
        return [{"kind": "plane", "file": f"{name}_axial.jpg", "title": "Axial, S 3 mm"}], []

    monkeypatch.setattr(evaluation_pictures, "draw_case", draw)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """(labeled CTs a, b, c; predictions for them, of which each misses one layer of the liver more)."""
    data = layouts.flat(tmp_path / "data", ("a", "b", "c"))
    for number, name in enumerate("abc"):
        labels = layouts.ct_and_labels(number)[1]
        labels[1 : 1 + number][labels[1 : 1 + number] == 1] = 0
        layouts.write(tmp_path / "predictions" / f"{name}_labels.nii.gz", labels)
    return data, tmp_path / "predictions"


def test_folders_against_each_other(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, no_pictures: None
) -> None:
    data, predictions = folders
    (data / "quality.json").write_text(json.dumps({"a": {"spleen": {"grade": "ignore"}}}))
    output = tmp_path / "out"
    status, result, errors = run(capsys, "--predictions", predictions, "--data", data, "--output", output, "--json")
    assert (status, errors) == (0, "")
    dice = [result["cases"][name]["organs"]["liver"]["dice"] for name in "abc"]
    assert dice == pytest.approx([1, 2 * 2 / 5, 2 * 1 / 4], abs=1e-6)
    assert result["summary"]["liver"]["dice"]["worst_case"] == "c"
    assert {"report.html", "evaluation.json", "cases.csv", "organs.csv"} <= files(output)
    content = json.loads((output / "evaluation.json").read_text())
    assert content["summary"] == result["summary"] and str(tmp_path) not in json.dumps(content)
    with open(output / "cases.csv", newline="") as stream:
        rows = {(row["case"], row["organ"]): row for row in csv.DictReader(stream)}
    assert len(rows) == 12 and float(rows["b", "liver"]["dice"]) == pytest.approx(0.8)
    assert (rows["a", "spleen"]["status"], rows["a", "spleen"]["dice"]) == ("not labeled", "")
    with open(output / "organs.csv", newline="") as stream:
        means = {(row["organ"], row["measure"]): float(row["mean"]) for row in csv.DictReader(stream)}
    assert means["liver", "dice"] == pytest.approx(np.mean(dice))
    text = (output / "report.html").read_text()
    assert "not labeled in 1, left out there" in text and "0.800" in text

    written = (output / "cases/a.json").stat().st_mtime_ns
    status, again, _ = run(capsys, "--predictions", predictions, "--data", data, "--output", output, "--json")
    assert (status, again["reused"]) == (0, 3)
    assert (output / "cases/a.json").stat().st_mtime_ns == written
    assert (output / "report.html").read_text() == text


def test_reference_folder_needs_no_ct(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, no_pictures: None
) -> None:
    data, predictions = folders
    for file in data.glob("*_ct.nii.gz"):
        file.unlink()
    status, result, _ = run(
        capsys, "--predictions", predictions, "--reference", data, "--output", tmp_path / "out", "--limit-cases", 2,
        "--organs", "liver,spleen", "--json",
    )  # fmt: skip
    assert (status, list(result["cases"]), list(result["organs"])) == (0, ["a", "b"], ["liver", "spleen"])
    assert "without their CTs" in (tmp_path / "out/report.html").read_text()


def test_comparison_with_an_earlier_evaluation(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, no_pictures: None
) -> None:
    data, predictions = folders
    assert run(capsys, "--predictions", predictions, "--data", data, "--output", tmp_path / "one")[0] == 0
    better = tmp_path / "better"
    for number, name in enumerate("abc"):
        layouts.write(better / f"{name}.nii.gz", layouts.ct_and_labels(number)[1])
    status, result, _ = run(
        capsys, "--predictions", better, "--data", data, "--output", tmp_path / "two", "--compare", tmp_path / "one",
        "--json",
    )  # fmt: skip
    liver = result["comparison"]["organs"]["liver"]["dice"]
    assert status == 0 and liver["difference"] == pytest.approx((0 + 0.2 + 0.5) / 3, abs=1e-6)
    assert (liver["better"], liver["worse"]) == (2, 0) and liver["low"] <= liver["difference"] <= liver["high"]
    text = (tmp_path / "two/report.html").read_text()
    assert "Compared with predictions" in text and "<svg" in text
    assert "comparison.csv" in files(tmp_path / "two")


def test_comparison_with_a_model(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
    no_pictures: None,
) -> None:  # fmt: skip
    """The other model is run on the same cases, and not again when the command is."""
    data, predictions = folders
    asked: list[str] = []

    class OtherModel(predictors.FolderPredictor):
        kind = "model"

        def __init__(self, folder: Path, device: str) -> None:
            super().__init__(predictions)
            self.name = "other 1"

        def predict(self, case, volume):
            asked.append(case)
            return super().predict(case, volume)

    monkeypatch.setattr(predictors, "ModelPredictor", OtherModel)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.json").write_text("{}")
    arguments = ("--predictions", data, "--data", data, "--output", tmp_path / "out", "--compare", tmp_path / "model")
    for _ in range(2):
        status, result, _ = run(capsys, *arguments, "--json")
        liver = result["comparison"]["organs"]["liver"]["dice"]
        assert status == 0 and result["comparison"]["name"] == "other 1"
        assert (liver["mean"], liver["other_mean"]) == pytest.approx((1.0, (1 + 0.8 + 0.5) / 3), abs=1e-6)
    assert asked == ["a", "b", "c"]


def test_cases_that_a_model_was_trained_on_are_told(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
    no_pictures: None,
) -> None:  # fmt: skip
    """Of a folder with training and other cases, the warning, the table and the report say which are which."""
    data, predictions = folders
    roles: dict[str, str] = {}

    class Model(predictors.FolderPredictor):
        kind = "model"

        def __init__(self, folder: Path, device: str) -> None:
            super().__init__(predictions)

        def role_of(self, case):
            return roles.get(case)

    monkeypatch.setattr(predictors, "ModelPredictor", Model)
    arguments = ("--model", "bundled", "--data", data, "--output", tmp_path / "out", "--organs", "liver", "--json")
    status, result, errors = run(capsys, *arguments)
    assert (status, errors, result["roles"]) == (0, "", {})
    assert "does not say which cases it was trained on" in (tmp_path / "out/report.html").read_text()

    roles.update(a=names_of_roles.TRAINED, b=names_of_roles.VALIDATED, c=names_of_roles.NEW)
    status, result, errors = run(capsys, *arguments)
    assert (status, result["roles"]) == (0, roles)
    assert errors.startswith("Warning: 1 of 3 cases were trained on") and " a. " in errors and errors.count("\n") == 1
    assert "without them: 0.650" in errors  # the mean of 0.8 and 0.5; with case a it is 0.767
    text = (tmp_path / "out/report.html").read_text()
    assert Page(text).open == []
    assert "<b>1 of 3 cases were trained on</b>" in text and "<b>0.767</b>" in text and "<b>0.650</b>" in text
    assert [text.count(f'<td class="measure">{role}</td>') for role in roles.values()] == [1, 1, 1]
    with open(tmp_path / "out/cases.csv", newline="") as stream:
        assert {row["case"]: row["to_the_model"] for row in csv.DictReader(stream)} == roles

    roles.update(b=names_of_roles.TRAINED, c=names_of_roles.TRAINED)
    errors = run(capsys, *arguments)[2]
    assert errors.startswith("Warning: 3 of 3 cases were trained on") and "without them" not in errors


def test_videos_lie_beside_the_report_and_are_made_once(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
    no_pictures: None,
) -> None:  # fmt: skip
    from FlareSegmentSlicerLib.rendering import videos

    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
    data, predictions = folders
    made: list[str] = []

    def slices(path: Path, volume, labels, reference, *, organs) -> None:
        assert labels.shape == reference.shape == volume.array.shape
        made.append(f"{volume.name} {path.name}")
        path.write_bytes(b"video")

    monkeypatch.setattr(videos, "write_slices_video", slices)
    monkeypatch.setattr(videos, "write_turntable_video", lambda *parts, organs: slices(*parts, parts[2], organs=organs))
    arguments = ("--predictions", predictions, "--data", data, "--output", tmp_path / "out", "--limit-cases", 2)
    for _ in range(2):
        assert run(capsys, *arguments, "--videos")[0] == 0
    assert made == ["a a_slices.mp4", "a a_3d.mp4", "b b_slices.mp4", "b b_3d.mp4"]
    links = [link for link in Page((tmp_path / "out/report.html").read_text()).links if not link.startswith("#")]
    assert sorted(links) == sorted(f"videos/{name}.mp4" for name in ("a_slices", "a_3d", "b_slices", "b_3d"))

    layouts.write_pair(data / "b_ct.nii.gz", data / "b_labels.nii.gz", 9)  # another CT: its videos are old
    assert run(capsys, *arguments, "--videos")[0] == 0
    assert made[4:] == ["b b_slices.mp4", "b b_3d.mp4"]

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    status, _, errors = run(capsys, *arguments, "--videos")
    assert status == 1 and f'"{sys.executable}" -m pip install imageio-ffmpeg' in errors and errors.count("\n") == 1


def test_the_report_loads_nothing_and_holds_every_picture(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data, predictions = folders
    output = tmp_path / "out"
    arguments = ("--predictions", predictions, "--data", data, "--output", output, "--limit-cases", 1)
    assert run(capsys, *arguments)[0] == 0
    text = (output / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and "script" not in page.tags and "default-src 'none'" in text
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.loads)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"https?://|url\(|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    assert str(tmp_path) not in text
    pictures = sorted((output / "pictures").glob("*.jpg"))
    assert len(page.loads) == len(pictures) >= 7  # three planes and four organs; two more where there is OpenGL
    assert html_report.PICTURED_CASES * len(text) < 10e6
    assert text.count('class="turned"') == len([picture for picture in pictures if "_3d_" in picture.name])
    for picture in pictures:
        pixels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(picture)))
        assert min(pixels.shape[:2]) >= 100 and pixels.shape[2] == 3 and pixels.std() > 5


def test_the_worst_slice_is_shown_and_what_differs_is_tinted(tmp_path: Path) -> None:
    from FlareSegmentLib.organs import ORGANS
    from FlareSegmentLib.volume import Volume
    from FlareSegmentSlicerLib.rendering.drawing import REFERENCE

    reference = np.zeros((20, 40, 40), np.uint8)
    reference[2:18, 5:35, 5:35] = 1
    labels = reference.copy()
    labels[13, 10:30, 10:30] = 0
    ct = np.where(reference > 0, 60, -1000).astype(np.int16)
    volume = Volume(ct, (2.0, 2.0, 3.0))
    pictures, _ = evaluation_pictures.draw_case(tmp_path, "x", volume, labels, reference, ORGANS)
    axial = next(item for item in pictures if item["file"] == "x_axial.jpg")
    assert axial["title"] == "Axial, S 39 mm"  # slice 13 of 3 mm
    pixels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / axial["file"]))).astype(int)
    missed = pixels[pixels.shape[0] // 2 - 20, pixels.shape[1] // 2 - 20]
    gray = (60 - (40 - 200)) / 400 * 255
    np.testing.assert_allclose(missed, 0.6 * gray + 0.4 * np.array(REFERENCE), atol=12)


def test_the_organs_turn_by_the_patients_left(tmp_path: Path) -> None:
    from FlareSegmentLib.organs import ORGANS, picture_color
    from FlareSegmentLib.volume import Volume

    labels = np.zeros((20, 40, 60), np.uint8)
    labels[5:15, 15:25, 5:20] = 1  # liver at the patient's right, spleen at the left and behind
    labels[5:15, 25:35, 45:55] = 4
    volume = Volume(np.where(labels > 0, 60, -1000).astype(np.int16), (3.0, 3.0, 3.0))
    pictures, warnings = evaluation_pictures.draw_case(tmp_path, "x", volume, labels, labels, ORGANS)
    if warnings:
        pytest.skip(warnings[0])
    files = [item["file"] for item in pictures if item["kind"] == "turn"]
    assert files == ["x_3d_reference.jpg", "x_3d_prediction.jpg"]
    sheet = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / files[1])))
    columns, rows = evaluation_pictures._SHEET
    height, width = sheet.shape[0] // rows, sheet.shape[1] // columns

    def place(number: int, organ: int) -> float:
        """Middle column, -0.5 to 0.5, of an organ in a view, by its color."""
        row, column = divmod(number, columns)
        view = sheet[row * height : (row + 1) * height, column * width : (column + 1) * width].astype(float)
        ratio = view / view.sum(axis=2, keepdims=True).clip(1)
        wanted = np.array(picture_color(ORGANS[organ])) / sum(picture_color(ORGANS[organ]))
        near = (np.abs(ratio - wanted).max(axis=2) < 0.03) & (view.max(axis=2) > 60)
        return float(np.nonzero(near)[1].mean()) / width - 0.5

    front, left, behind = 0, columns * rows // 4, columns * rows // 2
    assert place(front, 0) < -0.1 < 0.1 < place(front, 3)
    assert place(behind, 3) < -0.1 < 0.1 < place(behind, 0)
    assert place(left, 0) < place(left, 3)  # seen from the left, what is in front is at the picture's left


def test_names_are_escaped_and_states_are_told(tmp_path: Path) -> None:
    row = dict.fromkeys(
        ("reference_ml", "predicted_ml", "false_positive_ml", "dice", "nsd", "hd95_mm", "volume_error_ml",
         "volume_error_percent")
    )  # fmt: skip
    rows = {
        "liver": {**row, "status": "missed", "dice": 0.0, "nsd": 0.0, "reference_ml": 5.0, "predicted_ml": 0.0,
                  "volume_error_ml": -5.0, "volume_error_percent": -100.0},
        "spleen": {**row, "status": "false positive", "false_positive_ml": 2.5},
        "left_kidney": {**row, "status": "not labeled"},
        "right_kidney": {**row, "status": "absent", "false_positive_ml": 0.0},
    }  # fmt: skip
    record = {"organs": rows, "size": [1, 2, 3], "spacing_mm": [1, 1, 1], "has_ct": True, "warnings": ["<w>"],
              "pictures": []}  # fmt: skip
    from FlareSegmentLib.organs import organ_by_key

    cases = {"<b>&\"'": record}
    content = {
        "subject": {"kind": "model", "name": "<model>", "identity": "0" * 64},
        "organs": dict.fromkeys(rows), "cases": cases,
        "left_out": [{"case": "<x>", "reason": "a < b"}],
        "summary": summarize(cases, [organ_by_key(key) for key in rows]), "roles": {"<b>&\"'": "<r>"},
        "summary_without_trained": None,
    }  # fmt: skip
    html_report.write_report(tmp_path, content, {"<b>&\"'": ["videos/x.mp4"]})
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and "<model>" not in text and "<x>" not in text and "<w>" not in text and "<r>" not in text
    assert "2.5 mL predicted" in text and "not labeled, left out" in text and "missed" in text
    assert [link for link in page.links if not link.startswith("#")] == ["videos/x.mp4"]


def test_a_missing_template_engine_is_said_before_anything_is_measured(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, predictions = folders
    monkeypatch.setitem(sys.modules, "jinja2", None)
    status, _, error = run(capsys, "--predictions", predictions, "--data", data, "--output", tmp_path / "out")
    assert status == 2 and "needs the package jinja2" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_earlier_report(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, no_pictures: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data, predictions = folders
    arguments = ("--predictions", predictions, "--data", data, "--output", tmp_path / "out")
    assert run(capsys, *arguments)[0] == 0
    before = (tmp_path / "out/report.html").read_bytes()
    write = Path.write_text

    def full(path: Path, *rest: object, **options: object) -> int:
        if "report.html" in path.name:
            write(path, "half")
            raise OSError(28, "No space left on device")
        return write(path, *rest, **options)

    monkeypatch.setattr(Path, "write_text", full)
    status, _, errors = run(capsys, *arguments)
    assert status == 1 and "No space left" in errors and errors.count("\n") == 1
    assert (tmp_path / "out/report.html").read_bytes() == before
    assert not [name for name in files(tmp_path / "out") if "saving" in name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--output"),
        (["--model", "bundled", "--output", "out"], "--data"),
        (["--model", "bundled", "--data", "data"], "--output"),
        (["--model", "bundled", "--data", "missing", "--output", "out"], "missing"),
        (["--model", "missing", "--data", "data", "--output", "out"], "No model in missing"),
        (["--model", "bundled", "--reference", "data", "--output", "out"], "--data"),
        (["--model", "bundled", "--predictions", "data", "--data", "data", "--output", "out"], "not allowed with"),
        (["--predictions", "missing", "--data", "data", "--output", "out"], "missing is no folder"),
        (["--predictions", "empty", "--data", "data", "--output", "out"], "no label map"),
        (["--predictions", "data", "--reference", "empty", "--output", "out"], "no label map"),
        (["--predictions", "data", "--data", "data", "--output", "file"], "is a file"),
        (["--predictions", "data", "--data", "data", "--output", "file/sub"], "cannot be written"),
        (["--predictions", "data", "--data", "data", "--output", "out", "--organs", "lever"], "lever"),
        (["--predictions", "data", "--data", "data", "--output", "out", "--organs", "pancreas"], "Nothing can be"),
        (["--predictions", "data", "--data", "data", "--output", "out", "--limit-cases", "0"], "--limit-cases 0"),
        (["--predictions", "data", "--data", "data", "--output", "out", "--label-map", "x"], "--label-map x"),
        (["--predictions", "data", "--data", "data", "--output", "out", "--prediction-label-map", "1=x"], "'x'"),
        (["--predictions", "data", "--data", "data", "--output", "out", "--compare", "data"], "--compare data"),
        (["--predictions", "data", "--data", "data", "--output", "out", "--compare", "broken"], "as an evaluation"),
        (["--predictions", "data", "--data", "data", "--output", "out", "--device", "x"], "--device"),
        (["--predictions", "data", "--data", "data", "--output", "out", "--unknown"], "--unknown"),
        (["--predictions", "other", "--data", "data", "--output", "out"], "None of the 1 cases"),
    ],
)
def test_bad_usage_gives_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    layouts.flat(tmp_path / "data", ("a",))
    layouts.write(tmp_path / "other/b.nii.gz", layouts.ct_and_labels(0)[1])
    for folder in ("empty", "broken"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "broken/evaluation.json").write_text('{"format": "flaresegment-evaluation"}')
    status, _, errors = run(capsys, *arguments)
    assert status == 2
    assert errors.startswith("Error: ") and errors.count("\n") == 1 and words in errors
    assert (tmp_path / "file").read_text() == "text"
    assert not (tmp_path / "out/report.html").exists()


@pytest.mark.parametrize("host", ["python", "slicer"])
def test_started_as_people_do(tmp_path: Path, start_script, host: str) -> None:
    data = layouts.flat(tmp_path / "data", ("a",))
    for reference, status in ((data, 0), (tmp_path / "nothing", 2)):
        arguments = ("--predictions", data, "--reference", reference, "--output", tmp_path / "out", "--organs", "liver")
        done = start_script(host, "FlareSegmentTraining/Scripts/evaluate.py", *arguments)
        assert done.returncode == status, done.stderr
        assert ("Error: " in done.stderr) == (status == 2)
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["summary"]["liver"]["dice"]["mean"] == 1.0
