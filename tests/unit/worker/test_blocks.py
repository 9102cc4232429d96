"""The block pool's promises: no block is lost or given twice; equal beginnings are stored once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.worker.blocks import BlockPool, BlockTable

SIZE = 4


def pool(blocks: int = 16, *, shares_prefixes: bool = True) -> BlockPool:
    return BlockPool(blocks, SIZE, shares_prefixes=shares_prefixes)


def opened(pool: BlockPool, tokens: list[int], tokens_max: int | None = None) -> BlockTable:
    table = pool.open(tokens, tokens_max or len(tokens))
    assert table is not None
    pool.audit()
    return table


def filled(pool: BlockPool, tokens: list[int]) -> BlockTable:
    table = opened(pool, tokens)
    pool.filled(table, tokens)
    pool.audit()
    return table


def test_a_table_has_room_for_its_tokens_and_not_a_block_more() -> None:
    books = pool()
    assert len(opened(books, list(range(9))).blocks) == 3
    assert books.held == 3


def test_equal_beginnings_are_held_together_as_far_as_blocks_are_full() -> None:
    books = pool()
    first = filled(books, [*range(10)])
    second = opened(books, [*range(9), 77, 78])
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]
    assert second.found_tokens == 8
    assert books.held == 4


def test_at_least_one_token_is_left_to_be_computed() -> None:
    books = pool()
    filled(books, [*range(8)])
    assert opened(books, [*range(8)]).found_tokens == 4


def test_a_block_is_the_same_only_behind_the_same_beginning() -> None:
    books = pool()
    filled(books, [*range(12)])
    assert opened(books, [99, *range(1, 12)]).found_tokens == 0
    assert opened(books, [*range(4), *range(8, 12), 1]).found_tokens == 4


def test_what_is_not_filled_is_not_found() -> None:
    books = pool()
    table = opened(books, [*range(12)])
    books.filled(table, [*range(5)])
    assert opened(books, [*range(12)]).found_tokens == 4


def test_the_answer_is_found_by_whoever_goes_on_from_it() -> None:
    books = pool()
    table = filled(books, [*range(6)])
    assert books.extend(table, 9)
    books.filled(table, [*range(9)])
    books.close(table)
    assert opened(books, [*range(9)]).found_tokens == 8


def test_closed_tables_are_kept_until_room_is_needed_the_oldest_goes_first() -> None:
    books = pool(16)
    for start in (100, 200, 300):
        books.close(filled(books, [*range(start, start + 16)]))  # 4 blocks each
        books.audit()
    assert (books.held, books.kept) == (0, 12)
    opened(books, [*range(900, 920)])  # 5 blocks, 4 are free
    books.audit()
    assert opened(books, [*range(300, 316)]).found_tokens == 12
    assert opened(books, [*range(100, 116)]).found_tokens == 0


def test_the_end_of_a_sequence_is_evicted_before_its_beginning() -> None:
    books = pool(12)
    books.close(filled(books, [*range(48)]))
    opened(books, [*range(900, 904)])  # evicts some of it
    again = opened(books, [*range(16), 5])
    assert again.found_tokens == 16


def test_what_is_not_to_be_trusted_is_not_found_again() -> None:
    books = pool()
    table = filled(books, [*range(12)])
    books.close(table, forget=True)
    books.audit()
    assert books.kept == 0
    assert opened(books, [*range(12)]).found_tokens == 0


def test_without_sharing_nothing_is_found_and_nothing_kept() -> None:
    books = pool(shares_prefixes=False)
    books.close(filled(books, [*range(12)]))
    assert books.kept == 0
    assert opened(books, [*range(12)]).found_tokens == 0


def test_there_is_no_room_while_others_need_a_block_each_to_grow() -> None:
    books = pool(4)
    first = opened(books, [1] * 8)
    assert books.open([2] * 8, 8) is None
    second = opened(books, [2] * 4)
    assert books.extend(first, 9)
    assert not books.extend(second, 5)
    assert books.extend(second, 4)
    books.audit()
    books.close(first)
    assert books.extend(second, 16)
    books.audit()


def test_all_of_the_pool_can_be_one_sequences() -> None:
    books = pool(4)
    books.close(filled(books, [*range(16)]))
    table = opened(books, [5] * 16)
    assert sorted(table.blocks) == [0, 1, 2, 3]


def test_sequences_that_grow_side_by_side_lie_in_a_row_each() -> None:
    books = pool(32)
    tables = [opened(books, [start] * 5, 28) for start in range(4)]
    for tokens in range(5, 29):
        for table in tables:
            assert books.extend(table, tokens)
    books.audit()
    assert [len(table.runs) for table in tables] == [1] * 4


def test_a_leak_is_found() -> None:
    books = pool()
    books.audit_idle()
    table = opened(books, [1])
    with pytest.raises(RuntimeError, match="1 blocks are held, by 1"):
        books.audit_idle()
    books.close(table)
    books.audit_idle()
    books._free -= 1  # noqa: SLF001 - the fault to be found
    with pytest.raises(RuntimeError, match="add up"):
        books.audit()


_EVENT = st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(1, 14), st.booleans())


@given(st.lists(_EVENT, max_size=60), st.integers(0, 9))
def test_the_books_add_up_whatever_comes(
    events: list[tuple[int, int, int, bool]], chance: int
) -> None:
    books = pool(12, shares_prefixes=chance > 0)
    tables: dict[int, tuple[BlockTable, list[int]]] = {}
    contents: dict[int, list[int]] = {}  # block -> the tokens up to and with it, as last written
    for name, family, count, forget in events:
        if name not in tables:
            tokens = [family * 100 + index // 7 for index in range(count * 3)]
            table = books.open(tokens, len(tokens) + 8)
            if table is not None:
                for index in range(table.found_tokens // SIZE):
                    assert contents[table.blocks[index]] == tokens[: (index + 1) * SIZE]
                _write(table, tokens, contents)
                books.filled(table, tokens)
                tables[name] = (table, tokens)
        elif count % 2:
            table, tokens = tables[name]
            if books.extend(table, len(tokens) + count):
                tokens.extend([family] * count)
                _write(table, tokens, contents)
                books.filled(table, tokens)
        else:
            books.close(tables.pop(name)[0], forget=forget)
        books.audit()
    for table, _ in tables.values():
        books.close(table)
    books.audit()
    books.audit_idle()


def _write(table: BlockTable, tokens: list[int], contents: dict[int, list[int]]) -> None:
    start = table.found_tokens // SIZE
    for index in range(start, len(tokens) // SIZE):
        contents[table.blocks[index]] = tokens[: (index + 1) * SIZE]
