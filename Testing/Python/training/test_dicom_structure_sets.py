"""Structure sets as labels: names in several languages, holes and keyholes by even-odd fill, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")

from dicom_files import OBLIQUE, ct_and_labels, outline, patient, structure_set  # noqa: E402
from matplotlib.path import Path as Polygon  # noqa: E402

from FlareSegmentLib.errors import InputError  # noqa: E402
from FlareSegmentLib.organs import ORGANS  # noqa: E402
from FlareSegmentTrainingLib.datasets.organ_names import organ_of_name  # noqa: E402
from FlareSegmentTrainingLib.dicom.dicom_series import Identity, write_series  # noqa: E402
from FlareSegmentTrainingLib.dicom.structure_sets import fill_even_odd, read_structure_set  # noqa: E402

NAMES = {
    "liver": "Liver LIVER liver Leber Foie Hígado Fegato Fígado Lever Hepar Liver_organ OAR_Liver",
    "right_kidney": (
        "Kidney_R|Kidney, Right|RKidney|KidneyR|rkidney|Right Kidney|Rt. Kidney|Kidney Rt|kidney_right|"
        "Niere re|Niere_rechts|Rechte Niere|NIERE RE|Rein droit|Rein D|Rein_dt|Riñón der|Riñón derecho|Rene dx|"
        "Rene destro|Rim direito|Nier rechts|Höger njure|Nyre højre|Høyre nyre|Ren dexter|Niere R|RK"
    ),
    "left_kidney": (
        "Kidney_L|Kidney, Left|LKidney|KidneyL|lkidney|Left Kidney|Lt. Kidney|Niere li|Niere_links|Linke Niere|"
        "Rein gauche|Rein G|Riñón izq|Riñón izquierdo|Rene sx|Rene sinistro|Rim esquerdo|Nier links|"
        "Vänster njure|Venstre nyre|Ren sinister|LK"
    ),
    "spleen": "Spleen SPLEEN Milz Rate Bazo Milza Baço Milt Mjälte Lien",
}
NOT_ORGANS = (
    "Kidney|Kidneys|Niere|Rein|Kidney_R_Cortex|Kidney_R_PRV05|Kidney R L|Kidneys_Comb|Liver-GTV|Liver PTV|GTV_Liver|"
    "Liver minus GTV|Leber Meta|Liver2|Niere d|Body|Spinal Cord|Right|R||   |PTV|Spleen opt|Pouls|"
    "Reins|z_Liver|Nierenbecken re|Adrenal_R|Lever Right"
)


@pytest.mark.parametrize("organ", NAMES)
def test_names(organ: str) -> None:
    names = NAMES[organ].split("|" if "|" in NAMES[organ] else " ")
    assert {name: organ_of_name(name) for name in names} == dict.fromkeys(names, organ)


def test_what_is_no_organ_has_no_name() -> None:
    assert {name: organ_of_name(name) for name in NOT_ORGANS.split("|")} == dict.fromkeys(NOT_ORGANS.split("|"))


def test_even_odd_fill_agrees_with_matplotlib(capsys: pytest.CaptureFixture) -> None:
    random, shape, wrong, inside = np.random.default_rng(5), (40, 50), 0, 0
    columns, rows = np.meshgrid(np.arange(shape[1]), np.arange(shape[0]))
    centers = np.column_stack([columns.ravel(), rows.ravel()])
    for _ in range(200):
        angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 30)))
        radii = random.uniform(3, 24, len(angles))
        polygon = np.column_stack([25 + radii * np.cos(angles), 20 + radii * np.sin(angles)])
        expected = Polygon(polygon).contains_points(centers).reshape(shape)
        filled = fill_even_odd([polygon], shape)
        wrong += int(np.count_nonzero(filled != expected))
        inside += int(expected.sum())
    with capsys.disabled():
        print(f"\n200 star-shaped polygons: {wrong} of {inside} pixels differ from matplotlib's")
    assert wrong == 0


def test_holes_and_keyholes_and_neighbors() -> None:
    outer = np.array([[2, 2], [17, 2], [17, 17], [2, 17]], float) - 0.5
    hole = np.array([[6, 6], [10, 6], [10, 10], [6, 10]], float) - 0.5
    expected = np.zeros((20, 20), bool)
    expected[2:17, 2:17] = True
    expected[6:10, 6:10] = False
    np.testing.assert_array_equal(fill_even_odd([outer, hole], (20, 20)), expected)
    for gate in (0, 1, 2, 3):  # the channel goes in and out along one line, at any slope
        keyhole = np.vstack([outer, outer[:1], np.roll(hole, -gate, axis=0), hole[gate : gate + 1], outer[:1]])
        np.testing.assert_array_equal(fill_even_odd([keyhole], (20, 20)), expected)
    # outlines through the centers of pixels: every pixel belongs to exactly one of two neighbors
    left, right = np.array([[1, 1], [5, 1], [5, 8], [1, 8.0]]), np.array([[5, 1], [9, 1], [9, 8], [5, 8.0]])
    parts = [fill_even_odd([part], (10, 12)) for part in (left, right)]
    assert not (parts[0] & parts[1]).any() and (parts[0] | parts[1]).sum() == 8 * 7
    assert not fill_even_odd([outer + 100], (20, 20)).any()
    assert fill_even_odd([outer * 100 - 200], (20, 20)).all()


@pytest.mark.parametrize(
    "direction", [np.eye(3), np.diag([-1.0, -1.0, 1.0]), OBLIQUE], ids=["axial", "prone", "oblique"]
)
def test_structures_become_the_labels_they_were_drawn_from(tmp_path: Path, direction: np.ndarray) -> None:
    volume, labels = ct_and_labels(direction=direction)
    files = write_series(tmp_path / "ct", volume, Identity("p"))
    hole = np.argwhere((labels == 0) & (np.indices(labels.shape)[0] == 8))
    assert hole.size
    drawn = np.where(labels == 0, 0, labels)
    drawn[8, 14, 9] = 1
    names = ("Leber", "Niere re", "Niere li", "Milz")
    structures = {name: outline(volume, drawn == organ.label) for name, organ in zip(names, ORGANS)}
    pinhole = np.zeros_like(labels)
    pinhole[8, 14, 9] = 1
    structures["Leber"] += outline(volume, pinhole == 1)
    structures["PTV"] = structures["Leber"][:2]
    structure_set(tmp_path / "rs.dcm", files[0], structures)
    result = read_structure_set(tmp_path / "rs.dcm", volume)
    np.testing.assert_array_equal(result.labels, labels)
    assert result.organs == {organ.key for organ in ORGANS} and not result.refused and not result.remarks


def test_structures_that_would_be_wrong_are_refused_by_name(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    good = outline(volume, labels == 2)
    tilted = [contour + np.array([[0, 0, 0], [0, 0, 0], [0, 0, 3], [0, 0, 3.0]]) for contour in good]
    cases = {
        "oblique planes": tilted,
        "between the CT's slices": [contour + [0, 0, 1.2] for contour in good],
        "slices between its contours have none": good[::2],
        "beyond the CT": [contour + [0, 0, 500] for contour in good],
        "no contours": [],
        "hold no voxel": [contour * 0.001 + contour[:1] * 0.999 for contour in good],
    }
    for words, contours in cases.items():
        structure_set(tmp_path / "rs.dcm", files[0], {"Kidney_R": contours, "Spleen": outline(volume, labels == 4)})
        result = read_structure_set(tmp_path / "rs.dcm", volume)
        assert words in result.refused["right_kidney"] and result.organs == {"spleen"}, words
        assert not (result.labels == 2).any() and (result.labels == 4).any()
    structure_set(tmp_path / "rs.dcm", files[0], {"Spleen": [good[0][:2]]}, kind="POINT")
    assert "type POINT" in read_structure_set(tmp_path / "rs.dcm", volume).refused["spleen"]
    structure_set(tmp_path / "rs.dcm", files[0], {"Liver": good, "Leber": good})
    assert (
        "2 structures are called so (Liver, Leber)" in read_structure_set(tmp_path / "rs.dcm", volume).refused["liver"]
    )


def test_what_is_no_structure_set_gives_one_line(tmp_path: Path) -> None:
    volume, _, files = patient(tmp_path / "ct", "p")
    (tmp_path / "text").write_text("hello")
    for file in (files[0], tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(InputError) as caught:
            read_structure_set(file, volume)
        assert "\n" not in str(caught.value)


def test_structure_set_of_pydicom() -> None:
    volume, _ = ct_and_labels()
    result = read_structure_set(Path(pydicom.__file__).parent / "data" / "test_files" / "rtstruct.dcm", volume)
    assert not result.organs and not result.labels.any()
