"""Pages: every text escaped, every image inside, and a gallery that says what is wrong with its dataset."""

import pytest
from PIL import Image

from dive_fast.report import html
from dive_fast.report.gallery import write_gallery
from dive_fast.types import InputError


def test_text_is_escaped_and_images_are_inside(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("L", (4, 8), 100).save(picture)
    row = html.person_row(html.Person("<b>1</b>", 'say "x"', [html.Cell(picture, "a & b", made=True), None]))
    assert "<b>" not in row
    assert "a &amp; b" in row
    assert 'src="data:image/png;base64,' in row
    assert 'class="made"' in row
    page = html.write_page(tmp_path / "p.html", "T<", "lead", row, html.table(["x"], [["<1>"]], mark="<1>"))
    text = page.read_text()
    assert "<title>T&lt;</title>" in text
    assert '<tr class="mark"><td>&lt;1&gt;</td></tr>' in text


def test_other_image_kinds_become_png(tmp_path):
    picture = tmp_path / "a.bmp"
    Image.new("RGB", (4, 8)).save(picture)
    assert html.image_data(picture).startswith("data:image/png;base64,")
    assert html.image_data(Image.new("RGB", (2, 2))).startswith("data:image/png;base64,")


def test_a_folder_without_a_plan_is_refused(tmp_path):
    with pytest.raises(InputError, match="plan"):
        write_gallery(tmp_path, tmp_path / "page.html")
