import subprocess
import sys

from matrixinfer.local.addresses import Addresses

CLAIM = """
import sys
from matrixinfer.local.addresses import Addresses
addresses = Addresses()
print(addresses.take(), flush=True)
sys.stdin.read()
"""


def block(address):
    return address.rpartition(".")[0]


def test_two_stacks_never_share_a_block():
    ours, theirs = Addresses(), Addresses()

    assert block(ours.take()) != block(theirs.take())
    ours.close()
    theirs.close()


def test_a_block_is_free_again_when_its_process_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", CLAIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        theirs = other.stdout.readline().strip()
        other.kill()
    mine = Addresses()
    taken = {block(mine.take()) for _ in range(254)}
    blocks = [Addresses() for _ in range(8)]
    taken |= {block(addresses.take()) for addresses in blocks}

    assert block(theirs) in taken
    for addresses in (mine, *blocks):
        addresses.close()


def test_an_address_is_used_again_after_all_others():
    addresses = Addresses()
    first = addresses.take()
    addresses.give_back(first)
    rest = [addresses.take() for _ in range(253)]

    assert first not in rest
    assert addresses.take() == first
    addresses.close()


def test_more_pods_than_a_block_holds_get_another_block():
    addresses = Addresses()
    taken = [addresses.take() for _ in range(300)]

    assert len(set(taken)) == 300
    assert len({block(address) for address in taken}) == 2
    addresses.close()


def test_an_address_can_be_bound_without_any_set_up():
    import socket

    addresses = Addresses()
    with socket.create_server((addresses.take(), 0)) as server:
        assert server.getsockname()[1] > 0
    addresses.close()
