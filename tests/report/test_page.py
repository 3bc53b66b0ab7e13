"""Pages in one file: every text escaped, every image inside."""

import base64
import io
import re

from PIL import Image

from dive_fast.report import html
from dive_fast.report.config import ReportConfig
from dive_fast.report.sheet import write_sheet
from tests.support.dataset import change_records, make_dataset, raw_records
from tests.support.refusals import refused


def test_text_is_escaped_and_images_are_inside(tmp_path):
    picture = tmp_path / "a.png"
    Image.new("L", (4, 8), 100).save(picture)
    row = html.picture_row(html.PictureRow("<b>1</b>", 'say "x"', [html.Cell(picture, "a & b", made=True), None]))
    assert "<b>" not in row
    assert "a &amp; b" in row
    assert 'src="data:image/png;base64,' in row
    assert 'class="made"' in row
    page = html.write_page(tmp_path / "p.html", "T<", "lead", row, html.table(["x"], [["<1>"]], mark="<1>"))
    text = page.read_text()
    assert "<title>T&lt;</title>" in text
    assert '<tr class="mark"><td>&lt;1&gt;</td></tr>' in text
    Image.new("RGB", (4, 8)).save(tmp_path / "a.bmp")
    assert html.image_data(tmp_path / "a.bmp").startswith("data:image/png;base64,")  # other kinds become PNG


def test_a_pair_stays_together_where_a_row_breaks():
    picture = Image.new("L", (4, 8))
    cells = [html.Cell(picture, name) for name in ("rgb", "ir", "rgb 2", "ir 2")]
    row = html.picture_row(html.PictureRow("1", "", [*cells[:2], None, *cells[2:], None]))
    groups = row.split('<div class="group">')[1:]
    assert [re.findall("<figcaption>(.*?)</", group) for group in groups] == [["rgb", "ir"], ["rgb 2", "ir 2"]]


def test_only_images_get_into_a_page(tmp_path):
    """A link to another file, as an untrusted folder may hold, is refused; a lying photo is turned."""
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "a.png").symlink_to("secret.txt")
    refused("a.png is not an image", html.image_data, tmp_path / "a.png")
    exif = Image.Exif()
    exif[274] = 6
    for name, exif_of in (("b.jpg", exif), ("c.jpg", Image.Exif())):
        Image.new("RGB", (8, 4), "red").save(tmp_path / name, exif=exif_of)
    kind, _, data = html.image_data(tmp_path / "b.jpg").partition(";base64,")
    assert (kind, Image.open(io.BytesIO(base64.b64decode(data))).size) == ("data:image/png", (4, 8))
    kind, _, data = html.image_data(tmp_path / "c.jpg").partition(";base64,")
    assert (kind, base64.b64decode(data)) == ("data:image/jpeg", (tmp_path / "c.jpg").read_bytes())


def test_a_sheet_shows_that_an_image_cannot_be_read(tmp_path):
    dataset = make_dataset(tmp_path / "set")
    (dataset / raw_records(dataset)[0]["files"]["ir"]).write_bytes(b"secret")
    text = write_sheet(dataset, tmp_path / "page.html", ReportConfig(people=2, pairs=3)).read_text()
    assert "cam3 made, cannot be read" in text
    assert base64.b64encode(b"secret").decode()[:6] not in text


def test_bars_are_as_long_as_their_values_and_the_baseline_draws_the_line():
    bars = [html.Bar("<a>", "x & y", 10.0, "10.0", "baseline"), html.Bar("b", "", 40.0, "40.0")]
    text = html.bar_chart(bars)
    assert re.findall(r"width:([\d.]+)%", text) == ["25.00", "100.00"]
    assert "--line-at:25.00%" in text
    assert "&lt;a&gt;" in text and "x &amp; y" in text
    assert "--line-at" not in html.bar_chart(bars[1:])
    assert re.findall(r"width:([\d.]+)%", html.bar_chart([html.Bar("b", "", 0.0, "0.0")])) == ["0.00"]


def test_a_picture_table_names_its_columns_once_and_keeps_text_escaped():
    picture = Image.new("L", (4, 8))
    row = html.ColumnRow("<1>", "note", [[html.Cell(picture, "photo")], [html.Cell(picture, "a", True)] * 2])
    text = html.picture_table([("photo", ""), ("made", "two <b>")], [row, row])
    assert text.count('<th scope="col">') == 2
    assert text.count("<img ") == 2 * 3 and text.count('class="made"') == 2 * 2
    assert "<b>" not in text and "<1>" not in text


def test_a_sheet_holds_the_first_pairs_of_the_first_people(tmp_path):
    dataset = make_dataset(tmp_path / "set")
    (dataset / raw_records(dataset)[0]["files"]["ir"]).unlink()
    change_records(
        dataset, lambda r: r["spec"].update(pid="<img src=x onerror=1>") if r["spec"]["pid"] == "0001" else None
    )
    text = write_sheet(dataset, tmp_path / "page.html", ReportConfig(people=2, pairs=3), problems=["<b>"]).read_text()
    assert "24 pairs of 3 identities" in text
    assert text.count("<img ") == 2 * 3 * 2
    assert "&lt;img src=x onerror=1&gt;" in text
    assert "cam3 made, missing" in text
    assert "<b>" not in text
    assert "Health" not in write_sheet(dataset, tmp_path / "page.html").read_text()


def test_a_folder_without_a_plan_or_pairs_is_refused(tmp_path):
    refused("plan", write_sheet, tmp_path, tmp_path / "page.html")
    refused("no finished pair yet", write_sheet, make_dataset(tmp_path / "set", shards=0), tmp_path / "page.html")
