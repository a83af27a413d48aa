# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the smallest files that depmod, libkmod and kmodd take for modules."""

import struct
from collections.abc import Collection, Iterable, Mapping

SIGNATURE_MAGIC = b"~Module signature appended~\n"
ELF_HEADER = 64
X86_64 = 62


def module_file(
    strings: Iterable[str | bytes] = (),
    *,
    bits: int = 64,
    big_endian: bool = False,
    machine: int = X86_64,
    kind: int = 1,
    modinfo: bool = True,
    exports: Iterable[str] = (),
    imports: Iterable[str] = (),
    this_module: str | bytes = "",
    sections_more: Iterable[tuple[bytes, bytes]] = (),
    versions: Mapping[str, int] | None = None,
    sums: Mapping[str, int] | None = None,
    parameters: Iterable[str] = (),
    own_parameters: Collection[str] = (),
) -> bytes:
    """Build an ELF object with a .modinfo section, and a symbol table when it exports or imports symbols.

    `this_module` is the name in its struct module, or all of that; `sections_more` are further ones by name. `versions` are
    checksums of symbols it uses, `sums` of symbols it exports. `parameters` are names in its array of struct kernel_param,
    behind relocations as a compiler makes them: with an addend in a 64 bit file, and with the addend in place in a 32 bit one;
    the module's own functions set those that are in `own_parameters` too.
    """
    order = ">" if big_endian else "<"
    info = b"".join((text if isinstance(text, bytes) else text.encode()) + b"\0" for text in strings)
    texts = b"\0"
    symbols = struct.pack(order + "IBBHQQ", 0, 0, 0, 0, 0, 0)
    # depmod takes an exported symbol from a name in __ksymtab_strings, and an import from an undefined symbol.
    exported = b"".join(name.encode() + b"\0" for name in exports)
    for name in imports:
        symbols += struct.pack(order + "IBBHQQ", len(texts), 0x10, 0, 0, 0, 0)
        texts += name.encode() + b"\0"
    for name, value in (sums or {}).items():
        for symbol, section, what in ((f"__ksymtab_{name}", 1, 0), (f"__crc_{name}", 0xFFF1, value)):
            symbols += struct.pack(order + "IBBHQQ", len(texts), 0x10, 0, section, what, 0)
            texts += symbol.encode() + b"\0"
    # (name, type, content, link, entry size)
    sections: list[tuple[bytes, int, bytes, int, int]] = []
    applies_to: dict[bytes, int] = {}
    if modinfo:
        sections.append((b".modinfo", 1, info, 0, 0))
    if exported:
        sections.append((b"__ksymtab_strings", 1, exported, 0, 0))
    if this_module:
        if isinstance(this_module, str):
            this_module = bytes(24 if bits == 64 else 12) + this_module.encode().ljust(56, b"\0") + bytes(64)
        sections.append((b".gnu.linkonce.this_module", 1, this_module, 0, 0))
    sections += [(title, 1, content, 0, 0) for title, content in sections_more]
    if versions is not None:
        word = order + ("Q" if bits == 64 else "I")
        rows = [(struct.pack(word, value) + name.encode()).ljust(64, b"\0") for name, value in versions.items()]
        sections.append((b"__versions", 1, b"".join(rows), 0, 0))
    array, relocations, said = b"", b"", b"\0\0\0"
    for parameter in parameters:
        # One symbol, of value 1, stands for the section of the names; the one after it for the kernel's operations on int.
        operations = 0 if parameter in own_parameters else 1
        if bits == 64:
            first = len(symbols) // 24
            for place, number, addend in ((0, first, len(said) - 1), (8, first, 0), (16, first + operations, 0)):
                relocations += struct.pack(order + "QQq", len(array) + place, number << 32 | 1, addend)
            array += bytes(40)
        else:
            for place, number in ((0, 1), (4, 1), (8, 1 + operations)):
                relocations += struct.pack(order + "II", len(array) + place, number << 8 | 1)
            array += struct.pack(order + "I", len(said) - 1) + bytes(16)
        said += parameter.encode() + b"\0"
    if array:
        sections += [(b".rodata.str", 1, said, 0, 0), (b"__param", 1, array, 0, 0)]
        # Numbers of sections count from one; the names stand one before the array.
        where = len(sections) - 1
        if bits == 64:
            symbols += struct.pack(order + "IBBHQQ", 0, 3, 0, where, 1, 0)
            symbols += struct.pack(order + "IBBHQQ", len(texts), 0x10, 0, 0, 0, 0)
        else:
            symbols = bytes(16) + struct.pack(order + "IIIBBH", 0, 1, 0, 3, 0, where)
            symbols += struct.pack(order + "IIIBBH", len(texts), 0, 0, 0x10, 0, 0)
        texts += b"param_ops_int\0"
        # The table of relocations is followed by the texts and then the symbols.
        title = b".rela__param" if bits == 64 else b".rel__param"
        sections.append((title, 4 if bits == 64 else 9, relocations, len(sections) + 3, 24 if bits == 64 else 8))
        applies_to[title] = where + 1
    if bits == 64 or array:
        sections.append((b".strtab", 3, texts, 0, 0))
        sections.append((b".symtab", 2, symbols, len(sections), 24 if bits == 64 else 16))
    names = b"\0" + b"".join(section[0] + b"\0" for section in sections) + b".shstrtab\0"
    sections.append((b".shstrtab", 3, names, 0, 0))

    header_format, section_format = ("HHIQQQIHHHHHH", "IIQQQQIIQQ") if bits == 64 else ("HHIIIIIHHHHHH", "IIIIIIIIII")
    header_size = 16 + struct.calcsize(order + header_format)
    section_size = struct.calcsize(order + section_format)
    body, table = b"", bytes(section_size)
    for title, type_, content, link, entry in sections:
        offset = header_size + len(body)
        flags = 2 if title == b".modinfo" else 0
        where = names.index(b"\0" + title + b"\0") + 1
        table += struct.pack(
            order + section_format,
            where,
            type_,
            flags,
            0,
            offset,
            len(content),
            link,
            applies_to.get(title, 1),
            1,
            entry,
        )
        body += content + bytes(-len(content) % 8)
    identity = b"\x7fELF" + bytes([2 if bits == 64 else 1, 2 if big_endian else 1, 1]) + bytes(9)
    header = struct.pack(
        order + header_format,
        *(kind, machine, 1, 0, 0, header_size + len(body), 0, header_size, 0, 0),
        *(section_size, len(sections) + 1, len(sections)),
    )
    return identity + header + body + table


def der(tag: int, *parts: bytes) -> bytes:
    """One element of DER, as it is made of smaller ones."""
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def pkcs7_message(signer: str, *, certificates: bool = False, organisation: str = "") -> bytes:
    """A PKCS#7 SignedData in the shape of scripts/sign-file.c of Linux; the signature itself is nonsense."""
    sha256 = der(0x30, der(0x06, bytes.fromhex("608648016503040201")), der(0x05))
    rsa = der(0x30, der(0x06, bytes.fromhex("2a864886f70d010101")), der(0x05))
    names = []
    if organisation:
        names.append(der(0x31, der(0x30, der(0x06, b"\x55\x04\x0a"), der(0x0C, organisation.encode()))))
    names.append(der(0x31, der(0x30, der(0x06, b"\x55\x04\x03"), der(0x0C, signer.encode()))))
    issuer = der(0x30, der(0x30, *names), der(0x02, b"\x1b\xa0\xdb"))
    one = der(0x30, der(0x02, b"\x01"), issuer, sha256, rsa, der(0x04, bytes(256)))
    data = der(0x30, der(0x06, bytes.fromhex("2a864886f70d010701")))
    signed = [der(0x02, b"\x01"), der(0x31, sha256), data]
    if certificates:
        signed.append(der(0xA0, bytes(300)))
    signed.append(der(0x31, one))
    return der(0x30, der(0x06, bytes.fromhex("2a864886f70d010702")), der(0xA0, der(0x30, *signed)))


def sign(module: bytes, message: bytes, *, kind: int = 2, signer: bytes = b"", key: bytes = b"") -> bytes:
    """Append a signature as the kernel lays it out (include/linux/module_signature.h)."""
    header = struct.pack(">BBBBB3xI", 0, 0, kind, len(signer), len(key), len(message))
    return module + signer + key + message + header + SIGNATURE_MAGIC
