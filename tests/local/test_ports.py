import socket

import pytest

from matrixinfer.local import ports


def test_zero_is_any_free_port_that_no_connection_gets_meanwhile():
    chosen = {ports.choose(0, option="--port") for _ in range(50)}

    assert len(chosen) > 1
    assert max(chosen) < int(ports._EPHEMERAL.read_text().split()[0])


@pytest.mark.parametrize("told", ["1024\t65535\n", "", "no number"])
def test_where_connections_may_get_any_port_the_kernel_chooses(told, tmp_path, monkeypatch):
    monkeypatch.setattr(ports, "_EPHEMERAL", tmp_path / "range")
    (tmp_path / "range").write_text(told)

    assert ports.choose(0, option="--port") > 0


def test_a_port_in_use_is_named_with_the_option_to_change():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        with pytest.raises(ports.PortInUse, match=rf"port {port} is in use: choose another with --admin-port PORT"):
            ports.choose(port, option="--admin-port")


def test_a_held_port_is_in_use_for_others_and_can_be_served_with_reuse():
    with ports.hold(0, option="--port", host="127.0.0.1") as held:
        port = held.getsockname()[1]

        with pytest.raises(ports.PortInUse):
            ports.hold(port, option="--port", host="127.0.0.1")
        with (
            socket.create_server(("127.0.0.1", port), reuse_port=True) as server,
            socket.create_connection(("127.0.0.1", port), timeout=5) as client,
        ):
            accepted, _ = server.accept()
            assert accepted.getpeername() == client.getsockname()
            accepted.close()
