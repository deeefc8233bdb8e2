from shoal.replace.portions import fill_portions


def test_a_portion_is_filled_before_the_next_begins():
    assert fill_portions([3, 4, 2, 9, 1, 1], float, 7) == [[3, 4], [2], [9], [1, 1]]
    assert fill_portions([], float, 7) == []
