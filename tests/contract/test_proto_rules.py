"""The wire contract keeps its form: buf's main rules (STANDARD, COMMENTS) where npm is missing."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

ROOT = Path(__file__).parents[2]
PACKAGES = {"common", "inference", "control", "scheduler", "worker", "storage"}

# Field numbers within descriptor.proto, by which source locations name what they describe.
MESSAGE, ENUM, SERVICE = 4, 5, 6
MESSAGE_FIELD, MESSAGE_NESTED, MESSAGE_ENUM, MESSAGE_ONEOF = 2, 3, 4, 8
ENUM_VALUE, SERVICE_METHOD = 2, 2

Places = Iterator[tuple[tuple[int, ...], str]]


def compiled(protos: Path) -> list[FileDescriptorProto]:
    """Return the descriptors of all files below `protos`, with source locations."""
    out = subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", "--include_source_info"),
            *("--descriptor_set_out=/dev/stdout", *map(str, sorted(protos.rglob("*.proto")))),
        ],
        check=True,
        capture_output=True,
    ).stdout
    return list(FileDescriptorSet.FromString(out).file)


def places(file: FileDescriptorProto) -> Places:
    """Yield the path and name of everything in `file` that needs a comment."""
    for i, message in enumerate(file.message_type):
        yield from _message_places(message, (MESSAGE, i))
    for i, enum in enumerate(file.enum_type):
        yield from _enum_places(enum, (ENUM, i))
    for i, service in enumerate(file.service):
        yield (SERVICE, i), service.name
        for j, method in enumerate(service.method):
            yield (SERVICE, i, SERVICE_METHOD, j), f"{service.name}.{method.name}"


def _message_places(message: DescriptorProto, path: tuple[int, ...]) -> Places:
    yield path, message.name
    for i, field in enumerate(message.field):
        yield (*path, MESSAGE_FIELD, i), f"{message.name}.{field.name}"
    synthetic = {field.oneof_index for field in message.field if field.proto3_optional}
    for i, oneof in enumerate(message.oneof_decl):
        if i not in synthetic:
            yield (*path, MESSAGE_ONEOF, i), f"{message.name}.{oneof.name}"
    for i, nested in enumerate(message.nested_type):
        yield from _message_places(nested, (*path, MESSAGE_NESTED, i))
    for i, enum in enumerate(message.enum_type):
        yield from _enum_places(enum, (*path, MESSAGE_ENUM, i))


def _enum_places(enum: EnumDescriptorProto, path: tuple[int, ...]) -> Places:
    yield path, enum.name
    for i, value in enumerate(enum.value):
        yield (*path, ENUM_VALUE, i), f"{enum.name}.{value.name}"


def findings(files: list[FileDescriptorProto]) -> list[str]:
    """Return one line for each rule that a file breaks."""
    found: list[str] = []
    for file in files:
        found += _package_findings(file)
        found += _enum_findings(file)
        found += _service_findings(file)
        comments = {
            tuple(place.path): place.leading_comments for place in file.source_code_info.location
        }
        found += [
            f"{file.name}: {name} has no comment"
            for path, name in places(file)
            if not comments.get(path, "").strip()
        ]
    used = [
        kind
        for file in files
        for s in file.service
        for m in s.method
        for kind in (m.input_type, m.output_type)
    ]
    found += [
        f"{kind} serves more than one RPC" for kind in sorted(set(used)) if used.count(kind) > 1
    ]
    return found


def _package_findings(file: FileDescriptorProto) -> list[str]:
    folder = file.name.rsplit("/", 1)[0]
    found = []
    if file.package != folder.replace("/", "."):
        found.append(f"{file.name}: package {file.package} is not its folder")
    if not re.fullmatch(r"brisk\.[a-z]+\.v[0-9]+", file.package):
        found.append(f"{file.name}: package {file.package} carries no version")
    return found


def _enum_findings(file: FileDescriptorProto) -> list[str]:
    found = []
    for enum in file.enum_type:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        if enum.value[0].name != prefix + "UNSPECIFIED" or enum.value[0].number != 0:
            found.append(f"{file.name}: {enum.name} has no zero value {prefix}UNSPECIFIED")
        found += [
            f"{file.name}: {v.name} lacks {prefix}"
            for v in enum.value
            if not v.name.startswith(prefix)
        ]
    return found


def _service_findings(file: FileDescriptorProto) -> list[str]:
    found = []
    for service in file.service:
        if not service.name.endswith("Service"):
            found.append(f"{file.name}: {service.name} does not end in Service")
        for method in service.method:
            names = (method.input_type.rsplit(".")[-1], method.output_type.rsplit(".")[-1])
            if names != (f"{method.name}Request", f"{method.name}Response"):
                found.append(f"{file.name}: {service.name}.{method.name} uses {names}")
    return found


def test_every_proto_keeps_the_rules() -> None:
    files = compiled(ROOT / "protos")
    assert {file.package.split(".")[1] for file in files} == PACKAGES
    assert findings(files) == []


@pytest.mark.parametrize(
    ("broken", "finding"),
    [
        ("message Lonely {}", "Lonely has no comment"),
        ("// Fine.\nenum Tint {\n// Fine.\nRED = 0;\n}", "Tint has no zero value TINT_UNSPECIFIED"),
        (
            "// A.\nmessage A {}\n// S.\nservice Shop {\n// R.\nrpc Buy(A) returns (A);\n}",
            "Shop does not end in",
        ),
        (
            "// A.\nmessage A {}\n// S.\nservice SService {\n// R.\nrpc Buy(A) returns (A);\n}",
            "more than one RPC",
        ),
    ],
)
def test_a_broken_rule_is_found(tmp_path: Path, broken: str, finding: str) -> None:
    folder = tmp_path / "brisk" / "toy" / "v1"
    folder.mkdir(parents=True)
    (folder / "toy.proto").write_text(f'syntax = "proto3";\npackage brisk.toy.v1;\n{broken}\n')
    assert any(finding in line for line in findings(compiled(tmp_path)))
