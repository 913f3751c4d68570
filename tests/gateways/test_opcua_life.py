"""Start, end and exit codes of the gateway, as a process and inside another one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from asyncua import Client
from asyncua.server.uaprocessor import UaProcessor
from fake_north import HELLO, INDEX, NODES, FakeNorth
from opcua_helpers import Seen, end, eventually, launch, wait_ready

from controller.core.commands import Command, CommandQueue, Reply
from controller.gateways import opcua, opcua_guard
from controller.north.frames import Node
from controller.north.publisher import Publisher
from controller.north.server import NorthServer

pytestmark = pytest.mark.wire


async def started(directory: Path, **options: object) -> tuple[asyncio.Task[None], str]:
    """The gateway inside this process; cancel the task to end it."""
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        opcua.serve(directory / "north.sock", "opc.tcp://127.0.0.1:0", on_ready=url.set_result, **options)  # type: ignore[arg-type]
    )
    async with asyncio.timeout(20):
        await asyncio.wait([task, url], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    return task, url.result()


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_in_process_it_leaves_no_task_and_no_ready_file(tmp_path: Path) -> None:
    north = FakeNorth(tmp_path / "north.sock")
    try:
        task, url = await started(tmp_path, ready_file=tmp_path / "ready")
        assert (tmp_path / "ready").read_text().strip() == url
        client = Client(url)
        await client.connect()
        subscription = await client.create_subscription(50, Seen())
        await subscription.subscribe_data_change(client.get_node("ns=2;s=line.good"))
        began = time.monotonic()
        await ended(task)  # with a client still there
        assert time.monotonic() - began < 2
        assert not (tmp_path / "ready").exists()
        client.disconnect_socket()
        await client.disconnect()
        assert north.path.exists()  # the controller's end is none of our business
    finally:
        north.stop()


async def test_another_line_ends_it_so_that_it_is_started_again(tmp_path: Path) -> None:
    north = FakeNorth(tmp_path / "north.sock")
    try:
        task, _ = await started(tmp_path)
        north.stop()
        north.hello = msgspec.structs.replace(HELLO, nodes=[*HELLO.nodes, Node("line.more", "int")])
        north.start()
        with pytest.raises(opcua.GatewayError, match="line has changed") as error:
            async with asyncio.timeout(5):
                await task
        assert error.value.code == opcua.EXIT_CHANGED
    finally:
        north.stop()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"nodes": [Node("line.x", "int"), Node("line.x", "int")]}, "twice"),
        ({"nodes": [Node("line.command.start", "int")]}, "gateway's own"),
    ],
)
async def test_a_model_it_cannot_show_is_refused(tmp_path: Path, change: dict[str, object], text: str) -> None:
    north = FakeNorth(tmp_path / "north.sock", msgspec.structs.replace(HELLO, **change))
    try:
        with pytest.raises(opcua.GatewayError, match=text):
            await started(tmp_path)
    finally:
        north.stop()


async def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    north = FakeNorth(tmp_path / "north.sock")
    try:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(opcua.GatewayError, match=f"127.0.0.1:{port}.*another server") as error:
                await opcua.serve(tmp_path / "north.sock", f"opc.tcp://127.0.0.1:{port}")
        assert error.value.code == opcua.EXIT_CANNOT_LISTEN
    finally:
        north.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.7.7", "[::]", "plant.example"])
async def test_the_network_needs_users(tmp_path: Path, host: str) -> None:
    with pytest.raises(opcua.GatewayError, match="give a users file") as error:
        await opcua.serve(tmp_path / "north.sock", f"opc.tcp://{host}:4840")
    assert error.value.code == opcua.EXIT_USAGE
    assert not (tmp_path / "north.sock.opcua-operator").exists()


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:4840", "opc.tcp://127.0.0.1", "http://x:1", "opc.tcp://x:99999"])
async def test_endpoints_are_checked(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(opcua.GatewayError, match="not of the form"):
        await opcua.serve(tmp_path / "north.sock", endpoint)


def test_it_waits_for_the_controller_and_ends_on_sigterm_with_a_client_connected(tmp_path: Path) -> None:
    process = launch(tmp_path)
    north = None
    try:
        deadline = time.monotonic() + 20
        while "waiting for the controller" not in (tmp_path / "log").read_text():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        north = FakeNorth(tmp_path / "north.sock")
        url = wait_ready(tmp_path, process)
        with socket.create_connection(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))):
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 0
            assert time.monotonic() - began < 2
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        end(process)
        if north is not None:
            north.stop()


def test_usage_errors_have_exit_code_2(tmp_path: Path) -> None:
    process = launch(tmp_path, endpoint="opc.tcp://0.0.0.0:0")
    try:
        assert process.wait(20) == opcua.EXIT_USAGE
    except subprocess.TimeoutExpired:
        end(process)
        raise
    assert "give a users file" in (tmp_path / "log").read_text()


def test_another_asyncua_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    opcua_guard.check_asyncua()
    with monkeypatch.context() as patch:
        patch.setattr(opcua_guard, "ASYNCUA", "2.1.1")
        with pytest.raises(RuntimeError, match=r"2\.1\.1"):
            opcua_guard.check_asyncua()
    with monkeypatch.context() as patch:
        patch.delattr(UaProcessor, "get_publish_request")
        with pytest.raises(RuntimeError, match="get_publish_request"):
            opcua_guard.check_asyncua()


def test_the_operators_password_is_for_its_owner_only_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "north.sock.opcua-operator"
    assert opcua.choose_users("127.0.0.1", tmp_path / "north.sock", None).accounts.keys() == {"operator"}
    first = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    opcua.choose_users("127.0.0.1", tmp_path / "north.sock", None)
    assert path.read_text() == first
    path.chmod(0o644)  # others may have read it: it is worth nothing any more
    opcua.choose_users("127.0.0.1", tmp_path / "north.sock", None)
    assert path.read_text() != first
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("operator:known-to-the-attacker\n")
    elsewhere.chmod(0o600)
    path.symlink_to(elsewhere)
    opcua.choose_users("127.0.0.1", tmp_path / "north.sock", None)
    assert elsewhere.read_text() == "operator:known-to-the-attacker\n"
    assert "attacker" not in path.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", path.name]
    with pytest.raises(opcua.GatewayError, match="cannot be written"):
        opcua.choose_users("127.0.0.1", tmp_path / "missing" / "north.sock", None)


async def test_in_front_of_the_real_north_server(tmp_path: Path) -> None:
    queue = CommandQueue()
    publisher = Publisher(HELLO, queue.put, time.monotonic_ns)
    values = [value for _, value in NODES.values()]
    publisher.publish(values, {}, time.time_ns())
    async with NorthServer(publisher, tmp_path / "north.sock"):
        task, url = await started(tmp_path)
        try:
            name, _, password = (tmp_path / "north.sock.opcua-operator").read_text().strip().partition(":")
            client = Client(url)
            client.set_user(name)
            client.set_password(password)
            seen = Seen()
            async with client:
                subscription = await client.create_subscription(50, seen)
                await subscription.subscribe_data_change(client.get_node("ns=2;s=line.good"))
                await seen.until(lambda _, value, __: value == 0)
                values[INDEX["line.good"]] = 5
                publisher.publish(values, {}, time.time_ns())
                await seen.until(lambda _, value, __: value == 5)
                publisher.publish(values, {INDEX["line.good"]: "wet is not connected: off"}, time.time_ns())
                await seen.until(lambda _, __, status: status.name == "BadNoCommunication")
                publisher.publish(values, {}, time.time_ns())
                seen.forget()
                await seen.until(lambda _, value, __: value == 5)
                call = asyncio.create_task(client.get_node("ns=2;s=line.command").call_method("2:Start"))
                commands: list[Command] = []

                async def arrived() -> bool:
                    commands.extend(queue.drain())
                    return bool(commands)

                await eventually(arrived)
                publisher.answer(Reply(id=commands[0].id, accepted=False, reason="not now"))
                assert await call == [False, "not now"]
                assert commands[0].user == "operator"
                await subscription.delete()
        finally:
            await ended(task)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_it_ends_when_the_controller_that_started_it_was_killed(tmp_path: Path) -> None:
    """Else it would keep the port, and follow the next controller, which brings a gateway of its own."""
    code = (
        "import os, subprocess, sys\n"
        "argv = [sys.executable, '-m', 'controller.gateways.opcua', '--endpoint', 'opc.tcp://127.0.0.1:0']\n"
        "argv += ['--north', sys.argv[1], '--parent', str(os.getpid())]\n"
        "print(subprocess.Popen(argv, stderr=subprocess.DEVNULL).pid, flush=True)\n"
        "sys.stdin.read()\n"
        "os._exit(1)\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(tmp_path / "north.sock"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    try:
        await asyncio.sleep(2.5)  # long enough to be up and waiting for north
        assert alive(pid)
        parent.stdin.close()
        await parent.wait()

        async def gone() -> bool:
            return not alive(pid)

        await eventually(gone, 10)
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
