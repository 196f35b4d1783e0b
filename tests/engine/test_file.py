"""The engine file: what comes back is what went in, and no damage goes unnoticed."""

import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.engine.engines import Stored, a_small_engine, an_engine, chain, some_arrays, weights
from whet.engine import file as engine_file
from whet.engine import header as engine_header
from whet.engine.checksum import checksum
from whet.engine.file import EngineFile, engine_bytes, weight_names, write_engine
from whet.engine.header import HEADER_BYTES, MAGIC, read_header
from whet.engine.validity import check_file, check_header
from whet.engine.weights import CHUNK, ImportedWeights
from whet.errors import Error, InvalidEngine, MissingWeights, WriteError
from whet.ir.graph import Graph
from whet.ir.types import TensorType

ROOT = str(Path(__file__).parents[2])

SECTION = struct.Struct("<8sQQII")


@pytest.fixture(params=["bytes", "file"])
def opened(request, tmp_path):
    """Opens an engine's bytes, as they are or from a file."""

    def open_it(data: bytes, **options) -> EngineFile:
        if request.param == "bytes":
            return EngineFile.open(data, **options)
        path = tmp_path / "engine.whet"
        path.write_bytes(data)
        return EngineFile.open(path, **options)

    return open_it


@pytest.mark.parametrize("seed", range(3))
def test_round_trip(opened, seed):
    graph, arrays, data = an_engine(seed)
    engine = opened(data)
    assert engine.graph.outputs == graph.outputs and engine.graph.inputs == graph.inputs
    assert engine.metadata == {"profiles": [{"x": [[1, 4], [2, 4], [9, 4]]}], "name": "κ"}
    assert engine.header.architectures == ("avx2",)
    for name, array in arrays.items():
        got = engine.weights.array(name)
        assert got.dtype == array.dtype and got.shape == array.shape
        assert got.tobytes() == array.tobytes() and not got.flags.writeable
        engine.weights.release(name)
        assert engine.weights.array(name).tobytes() == array.tobytes()
    engine.verify()


def test_saving_what_was_loaded_gives_the_same_bytes(opened):
    _, _, data = an_engine()
    engine = opened(data, allow_code=True)
    again = engine_bytes(
        engine.graph,
        engine.weights,
        metadata=engine.metadata,
        kernels=engine.kernels,
        architectures=engine.header.architectures,
    )
    assert again == data


PROGRAM = """
import sys, hashlib
from tests.engine.engines import an_engine
print(hashlib.sha256(an_engine()[2]).hexdigest())
"""


def test_two_processes_build_the_same_bytes():
    runs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ROOT},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]


def test_equal_weights_are_stored_once():
    array = np.random.default_rng(0).standard_normal((300, 1000)).astype("float32")
    one, two = {"a": array}, {"a": array, "b": array.copy(), "c": array.view("int32").reshape(-1)}
    grown = len(engine_bytes(chain(two), weights(two))) - len(
        engine_bytes(chain(one), weights(one))
    )
    assert grown < 1000


def test_equal_checksums_are_not_taken_for_equal_bytes(monkeypatch):
    monkeypatch.setattr("whet.engine.weights.checksum", lambda data: 7)
    arrays = {"a": np.zeros(5000, "float32"), "b": np.ones(5000, "float32")}
    engine = EngineFile.open(engine_bytes(chain(arrays), weights(arrays)))
    assert engine.weights.array("b").all() and not engine.weights.array("a").any()


def test_weights_are_read_once_and_one_at_a_time():
    arrays = some_arrays(np.random.default_rng(0))
    store = {n: Stored(TensorType(a.dtype.name, a.shape), a) for n, a in arrays.items()}
    engine_bytes(chain(arrays), ImportedWeights(store))
    assert {s.reads for s in store.values()} == {1}


def test_only_weights_that_the_graph_reads_are_stored():
    arrays = some_arrays(np.random.default_rng(0))
    part = dict(list(arrays.items())[3:6])
    engine = EngineFile.open(engine_bytes(chain(part), weights(arrays)))
    assert list(engine.weights.types) == list(part) == weight_names(engine.graph)


def test_a_weight_that_is_not_what_it_says_is_refused():
    arrays = {"a": np.zeros((2, 3), "float32")}
    store = ImportedWeights(
        {"a": Stored(TensorType("float32", (2, 3)), np.zeros((3, 2), "float32"))}
    )
    with pytest.raises(Error, match=r"'a' is float32\[2,3\], its array float32\[3, 2\]"):
        engine_bytes(chain(arrays), store)


def test_weights_may_be_left_out():
    arrays = {"a": np.ones(3, "float32"), "b": np.ones(9, "float32")}
    data = engine_bytes(chain(arrays), weights(arrays), without=["b"])
    engine = EngineFile.open(data)
    engine.verify()
    assert engine.weights.missing == ("b",) and engine.weights.array("a").all()
    with pytest.raises(MissingWeights, match="refit`: b"):
        engine.weights.array("b")
    assert [f.kind for f in check_file(data).findings] == ["weights"] and check_file(data).is_valid


def test_kernels_are_code_and_only_given_when_allowed(opened):
    _, _, data = an_engine()
    assert opened(data).kernels == {}
    assert opened(data, allow_code=True).kernels == {"k": b"code"}


# Damage


def sections(data: bytes) -> dict[str, tuple[int, int]]:
    """Where the sections lie."""
    count = read_header(data).section_count
    table = data[HEADER_BYTES : HEADER_BYTES + SECTION.size * count]
    return {
        raw.rstrip(b"\0").decode(): (start, size)
        for raw, start, size, *_ in SECTION.iter_unpack(table)
    }


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_flipped_bit_is_found_in_every_byte():
    """The weights' own are found as these are used."""
    rng = random.Random(9)
    data = a_small_engine()
    start, size = sections(data)["weights"]
    for byte in range(len(data)):
        bad = flipped(data, 8 * byte + rng.randrange(8))
        with pytest.raises(InvalidEngine):
            EngineFile.open(bad).verify()
        if not start <= byte < start + size:
            with pytest.raises(InvalidEngine):
                _ = EngineFile.open(bad).graph


def test_flipped_bits_of_weights_are_found_when_used():
    _, _, data = an_engine()
    rng = random.Random(5)
    start, size = sections(data)["weights"]
    for _ in range(100):
        engine = EngineFile.open(flipped(data, 8 * start + rng.randrange(8 * size)))
        bad = 0
        for name in engine.weights.types:
            try:
                engine.weights.array(name)
            except InvalidEngine as error:
                bad += 1
                assert repr(name) in str(error)
        try:
            engine.verify()
        except InvalidEngine:
            continue
        pytest.fail(f"a flipped bit went unnoticed, {bad} weights are damaged")


def test_other_damage_of_a_chunk_is_found():
    """Rows exchanged, zeroed, doubled, shifted: what storage does."""
    rng = np.random.default_rng(3)
    chunk = rng.integers(0, 256, CHUNK, np.uint8)
    right = checksum(chunk)
    for size in (1, 8, 64, 512, 4096, 65536):
        a, b = (rng.choice(CHUNK // size - 1, 2, replace=False) + 1) * size
        for change in ("exchange", "zero", "copy", "shift"):
            bad = chunk.copy()
            if change == "exchange":
                bad[a : a + size], bad[b : b + size] = chunk[b : b + size], chunk[a : a + size]
            if change == "zero":
                bad[a : a + size] = 0
            if change == "copy":
                bad[a : a + size] = chunk[b : b + size]
            if change == "shift":
                bad[a:] = np.roll(chunk[a:], size)
            assert (bad == chunk).all() or checksum(bad) != right, (change, size)


def test_checksum_is_frozen():
    """Files written by earlier versions hold these values."""
    data = np.arange(20000, dtype="<u4").view(np.uint8)
    assert [checksum(data[:n]) for n in (0, 1, 4095, 4096, 80000)] == FROZEN


FROZEN = [0, 3523407757, 2229316087, 4199195311, 1815784271]


@pytest.mark.parametrize("seed", range(2))
def test_every_cut_is_found(opened, seed):
    _, _, data = an_engine(seed)
    places = {
        p + d
        for start, size in sections(data).values()
        for p in (start, start + size)
        for d in (-1, 0, 1)
    }
    places |= {0, 1, 63, 64, 65, 96, len(data) - 1, len(data) // 2}
    for place in sorted(p for p in places if p < len(data)):
        with pytest.raises(InvalidEngine):
            opened(data[:place])
    with pytest.raises(InvalidEngine, match="longer than it was"):
        opened(data + b"\0" * 64)


def rewritten(data: bytes, change) -> bytes:
    """The engine after `change(header fields, table)`, with the checksums of both right again."""
    fields = list(engine_header._LAYOUT.unpack(data[:HEADER_BYTES]))
    count = fields[6]
    table = [
        list(row)
        for row in SECTION.iter_unpack(data[HEADER_BYTES : HEADER_BYTES + SECTION.size * count])
    ]
    change(fields, table)
    packed = b"".join(SECTION.pack(*row) for row in table)
    fields[7] = checksum(packed) if fields[7] >= 0 else -fields[7]
    head = engine_header._LAYOUT.pack(*fields[:-1], 0)[:-4]
    head += struct.pack("<I", checksum(head))
    return head + packed + data[HEADER_BYTES + SECTION.size * count :]


def set_field(place: int, value: int):
    def change(fields, table):
        fields[place] = value

    return change


def set_cell(row: int, column: int, value):
    def change(fields, table):
        table[row][column] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (set_field(1, 3), "format is version 3, this whet reads up to 2; update whet"),
        (set_field(1, 2**32 - 1), "format is version 4294967295"),
        (set_field(1, 0), "version is 0"),
        (set_field(2, 1 << 20), "flags that this version does not know"),
        (set_field(3, 2**63), "cut short"),
        (set_field(3, 64), "longer than it was"),
        (set_field(6, 2**32 - 1), "claims 4294967295 sections"),
        (set_field(6, 60), "cut short|damaged"),
        (set_field(6, 0), "damaged|no section"),
        (set_cell(1, 1, 0), "section 'graph' overlaps"),
        (set_cell(1, 1, 64), "section 'graph' overlaps"),
        (set_cell(1, 1, 2**63), "ends after the file"),
        (set_cell(1, 1, 65), "overlaps"),
        (set_cell(1, 2, 2**63), "section 'graph' ends after the file"),
        (set_cell(1, 2, 0), "damaged|not 0"),
        (set_cell(2, 0, b"graph"), "two sections 'graph'"),
        (set_cell(2, 0, b"hello"), "no section consts"),
        (set_cell(3, 0, b"hello"), "sections that this version does not know"),
        (set_cell(1, 3, 1), "section 'graph' is damaged"),
        (set_cell(1, 4, 1), "section 'graph'"),
    ],
)
def test_lies_in_the_tables_are_found(change, message):
    _, _, data = an_engine()
    assert (
        sections(data).keys()
        == dict.fromkeys(["meta", "graph", "consts", "kernels", "weights", "index"]).keys()
    )
    with pytest.raises(InvalidEngine, match=message):
        _ = EngineFile.open(rewritten(data, change)).graph


def replaced(data: bytes, section: str, content: bytes) -> bytes:
    """The engine with another content of a section, everything around it right."""
    parts = {name: data[start : start + size] for name, (start, size) in sections(data).items()}
    parts[section] = content
    out = bytearray(HEADER_BYTES + SECTION.size * len(parts))
    table = b""
    for name, part in parts.items():
        out += bytes(-len(out) % 64)
        check, flags = (0, 1) if name == "weights" else (checksum(part), 0)
        table += SECTION.pack(name.encode(), len(out), len(part), check, flags)
        out += part
    out += bytes(-len(out) % 64)
    out[HEADER_BYTES : HEADER_BYTES + len(table)] = table
    fields = list(engine_header._LAYOUT.unpack(data[:HEADER_BYTES]))
    fields[3], fields[7] = len(out), checksum(table)
    head = engine_header._LAYOUT.pack(*fields[:-1], 0)[:-4]
    out[:HEADER_BYTES] = head + struct.pack("<I", checksum(head))
    return bytes(out)


def index_of(data: bytes) -> dict:
    start, size = sections(data)["index"]
    return json.loads(data[start : start + size])


@pytest.mark.parametrize(
    "path, value, message",
    [
        (["chunk"], 1, "in chunks of"),
        (["contents", 0, 0], 2**60, "where a weight starts"),
        (["contents", 1, 0], 1, "where a weight starts|not aligned"),
        (["contents", 0, 1], 2**60, "a weight's bytes"),
        (["contents", 1, 0], 0, "where a weight starts|not aligned"),
        (["contents", -1, 2], [1] * 10**5, "checksums"),
        (["contents", 0, 2], [2**40] * 1, "a checksum"),
        (["contents"], [], "the place of a weight's bytes"),
        (["contents"], None, "must be a list"),
        (["weights", 0, 0], 5, "name must be text"),
        (["weights", 0, 0], "w1 κ", "stands twice"),
        (["weights", 0, 1], "float33", "no dtype"),
        (["weights", 0, 2], [2**60], "a size"),
        (["weights", 4, 2], [2**47, 2**47], "needs .* bytes and has"),
        (["weights", 4, 2], [-1], "a size"),
        (["weights", 4, 3], 999, "the place of a weight's bytes"),
        (["weights", 4, 2], [1] * 99, "99 axes|needs"),
        (["weights"], [], "belong to no weight"),
    ],
)
def test_lies_in_the_index_are_found(path, value, message):
    _, _, data = an_engine()
    index = index_of(data)
    place = index
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(InvalidEngine, match=message):
        EngineFile.open(replaced(data, "index", json.dumps(index).encode()))


@pytest.mark.parametrize(
    "section, content, message",
    [
        ("graph", b"[" * 10**6, "not readable|too deep"),
        ("graph", b"9" * 10**5, "not readable"),
        ("graph", b"", "not readable"),
        ("graph", b"\xff\xfe", "not readable"),
        ("graph", b"[1e999]", "record"),
        ("meta", b"[]", "no record"),
        ("consts", b"", "constants|bytes has"),
        ("kernels", struct.pack("<Q", 2**63) + b"[]", "longer than they are"),
        ("kernels", struct.pack("<Q", 13) + b'[["a",99999]]', "a kernel's bytes"),
        ("kernels", b"1", "no index"),
    ],
)
def test_sections_of_nonsense_are_refused(section, content, message):
    arrays = some_arrays(np.random.default_rng(0))
    graph = chain(arrays)
    from whet.ir.graph import constant

    graph = Graph(
        graph.inputs, (*graph.outputs, constant(np.arange(1000))), (*graph.output_names, "c")
    )
    data = engine_bytes(graph, weights(arrays), kernels={"k": b"code"})
    with pytest.raises(InvalidEngine, match=message):
        EngineFile.open(replaced(data, section, content)).verify()


def test_a_graph_with_other_weights_is_refused():
    one, two = {"a": np.ones(3, "float32")}, {"a": np.ones(4, "float32")}
    graph = engine_bytes(chain(one), weights(one))
    start, size = sections(graph)["graph"]
    data = engine_bytes(chain(two), weights(two))
    with pytest.raises(InvalidEngine, match=r"weight 'a' is float32\[4\], not float32\[3\]"):
        _ = EngineFile.open(replaced(data, "graph", graph[start : start + size])).graph


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "0 bytes"),
        (b"\x08\x07" * 100, "no whet engine"),
        (MAGIC, "8 bytes"),
        (MAGIC + bytes(1000), "header is damaged"),
        (b"\n" + MAGIC + bytes(100), "no whet engine"),
    ],
)
def test_other_files_are_refused(opened, data, message):
    with pytest.raises(InvalidEngine, match=message):
        opened(data)


def test_folders_and_missing_files(tmp_path):
    for path in (tmp_path / "none.whet", tmp_path, tmp_path / "x\0y"):
        with pytest.raises(InvalidEngine, match="cannot be read"):
            EngineFile.open(path)


def test_earlier_versions_are_upgraded(monkeypatch):
    _, _, data = an_engine()

    def to_third(section, plain):
        return {"renamed": plain} if section == "meta" else plain

    for module in (engine_file, engine_header):
        monkeypatch.setattr(module, "VERSION", 3)
    monkeypatch.setattr(engine_file, "UPGRADES", {2: to_third})
    engine = EngineFile.open(data)
    assert engine.metadata["renamed"]["name"] == "κ" and engine.graph.outputs


# Validity


def test_validity_from_the_header_alone():
    _, _, data = an_engine()
    head = data[:HEADER_BYTES]
    assert check_header(head).is_optimal and str(check_header(head)) == "valid"
    assert check_header(head, architecture="x86_64-linux-avx2+vnni", memory=2**40).is_optimal
    (finding,) = check_header(head, architecture="sm90").findings
    assert finding.kind == "architecture" and not finding.is_fatal and "avx2" in finding.reason
    found = check_header(head, memory=1000)
    assert [f.kind for f in found.findings] == ["memory"] and not found.is_valid
    assert [f.kind for f in check_header(flipped(head, 100)).findings] == ["damage"]
    later = rewritten(data, set_field(1, 3))[:HEADER_BYTES]
    assert [f.kind for f in check_header(later).findings] == ["version"]
    assert not check_header(b"").is_valid


def test_validity_of_the_whole_file(tmp_path):
    _, _, data = an_engine()
    assert check_file(data).is_optimal
    path = tmp_path / "bad.whet"
    path.write_bytes(flipped(data, 8 * sections(data)["weights"][0]))
    assert check_header(path.read_bytes()[:64]).is_valid
    (finding,) = check_file(path).findings
    assert finding.kind == "damage" and "bad.whet" in finding.reason


# Writing


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "engine.whet"
    path.write_bytes(b"before")
    arrays = {"a": np.ones(10, "float32")}

    class Broken(Stored):
        def read(self):
            raise KeyboardInterrupt

    store = ImportedWeights({"a": Broken(TensorType("float32", (10,)), arrays["a"])})
    with pytest.raises(KeyboardInterrupt):
        write_engine(path, chain(arrays), store)
    assert os.listdir(tmp_path) == ["engine.whet"] and path.read_bytes() == b"before"


def test_unknown_architectures_are_refused(tmp_path):
    arrays = {"a": np.ones(10, "float32")}
    with pytest.raises(Error, match=r"\['sm7'\] are no architectures; choose among sse2"):
        write_engine(tmp_path / "x", chain(arrays), weights(arrays), architectures=["avx2", "sm7"])
    with pytest.raises(WriteError):
        write_engine(tmp_path, chain(arrays), weights(arrays))
