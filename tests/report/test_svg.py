from shoal.report import svg


def test_text_and_attributes_are_escaped() -> None:
    made = svg.tag("text", "<script>", data_name='a"b<c>', class_="x")
    assert made == '<text data-name="a&quot;b&lt;c&gt;" class="x">&lt;script&gt;</text>'


def test_markup_is_not_escaped_twice() -> None:
    assert svg.group(svg.tag("title", "a & b")) == "<g><title>a &amp; b</title></g>"


def test_numbers_are_short() -> None:
    assert svg.line(0, 1.5, 2.0, 3.14159, "grid") == '<line x1="0" y1="1.5" x2="2" y2="3.14" class="grid"></line>'


def test_a_picture_is_named_and_described() -> None:
    made = svg.picture("it", 10, 20, "A name", "What it shows")
    assert 'role="img"' in made
    assert 'aria-labelledby="it-title it-desc"' in made
    assert '<desc id="it-desc">What it shows</desc>' in made
    assert 'role="group"' in svg.picture("it", 10, 20, "A name", "What it shows", role="group")


def test_a_stock_has_no_size_and_is_drawn_from() -> None:
    made = svg.stock(svg.group(id="cell"))
    assert made == '<svg width="0" height="0" class="stock" aria-hidden="true"><g id="cell"></g></svg>'
    assert svg.use("cell") == '<use href="#cell"></use>'
