# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a webhook may reach."""

from ipaddress import ip_address, ip_network

import pytest

from kmodd.notifier.configuration import parse_address, permitted

REFUSED = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1 172.31.255.255
    192.0.0.1 192.0.2.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
    :: ::1 fe80::1 fe80::1%eth0 fec0::1 fc00::1 fd12::1 ff02::1 2001:db8::1 100::1 2001::1 4000::1
    ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 2002:7f00:1::1
    64:ff9b:1::1 2002:a00:1::
""".split()  # noqa: SIM905 - a list of so many is read better this way
REACHED = "1.1.1.1 9.9.9.9 172.32.0.1 192.167.255.255 2606:4700::1111 2a00:1450::1 ::ffff:1.1.1.1 64:ff9b::101:101 2002:101:101::".split()  # noqa: SIM905


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_not_reachable_from_everywhere_is_refused(text: str) -> None:
    assert not permitted(ip_address(text))


@pytest.mark.parametrize("text", REACHED)
def test_what_is_reachable_from_everywhere_is_not(text: str) -> None:
    assert permitted(ip_address(text))


def test_the_administrator_may_open_a_network_and_no_other() -> None:
    allowed = [ip_network("10.1.0.0/16"), ip_network("fd00::/8")]
    assert permitted(ip_address("10.1.2.3"), allowed)
    assert permitted(ip_address("::ffff:10.1.2.3"), allowed)
    assert permitted(ip_address("fd12::1"), allowed)
    assert not permitted(ip_address("10.2.0.1"), allowed)
    assert not permitted(ip_address("fe80::1"), allowed)


def test_an_open_network_opens_nothing_with_a_scope() -> None:
    assert not permitted(ip_address("fe80::1%eth0"), [ip_network("fe80::/10")])


@pytest.mark.parametrize("text", ["localhost", "0x7f.1", "127.1", "1.2.3.4.5", ""])
def test_what_is_no_address_is_none(text: str) -> None:
    assert parse_address(text) is None
