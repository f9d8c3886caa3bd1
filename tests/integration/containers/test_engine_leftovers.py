from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import uuid
from dataclasses import replace

import pytest

from bundler.engines.container_engine import Engine
from bundler.engines.engine_leftovers import find_engine_leftovers, remove_engine_leftover
from bundler.engines.owner import TEMPORARY, Owner
from bundler.images.device_image import DeviceImage

pytestmark = pytest.mark.engine

SLEEP = "import sys, time; print('awake', file=sys.stderr, flush=True); time.sleep(600)"


def test_the_container_of_a_killed_process_is_found_and_that_of_a_living_one_is_not(
    engine: Engine, amd64_image: DeviceImage
) -> None:
    token = uuid.uuid4().hex
    program = textwrap.dedent(f"""
        from bundler.engines.container import ContainerRequest, run_container
        from bundler.engines.emulation import Launch
        from bundler.engines.container_engine import connect
        with connect() as engine:
            request = ContainerRequest(image={amd64_image.id!r}, command=["selftest", {SLEEP!r}],
                                       launch=Launch(runner="native"), timeout_seconds=300, memory_mib=512,
                                       labels={{"edge-bundler-test": {token!r}}})
            run_container(engine, request, on_stderr_line=lambda line: print(line, flush=True))
    """)

    def container() -> str:
        (found,) = engine.client.api.containers(all=True, filters={"label": [f"edge-bundler-test={token}"]})
        return str(found["Names"][0].lstrip("/"))

    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "awake\n"
        name = container()
        assert name not in [leftover.name for leftover in find_engine_leftovers(engine)]
        process.send_signal(signal.SIGKILL)
    (leftover,) = [leftover for leftover in find_engine_leftovers(engine) if leftover.name == name]
    assert (leftover.kind, leftover.alive) == ("container", False)
    remove_engine_leftover(engine, leftover)
    assert not engine.client.api.containers(all=True, filters={"label": [f"edge-bundler-test={token}"]})
    remove_engine_leftover(engine, leftover)  # somebody else was faster


def test_temporary_images_are_told_apart_by_their_owner(engine: Engine, amd64_image: DeviceImage) -> None:
    mine = Owner.current()
    name = f"{TEMPORARY}/test-{uuid.uuid4().hex[:8]}"
    gone, elsewhere = replace(mine, started=mine.started + 1), replace(mine, machine="00000000")
    for owner in (mine, gone, elsewhere):
        engine.client.api.tag(amd64_image.id, name, str(owner))
    try:
        found = {leftover.name: leftover for leftover in find_engine_leftovers(engine) if leftover.name.startswith(name)}
        assert {reference: leftover.alive for reference, leftover in found.items()} == {
            f"{name}:{gone}": False,
            f"{name}:{elsewhere}": None,
        }
        remove_engine_leftover(engine, found[f"{name}:{gone}"])
        tags = [tag for image in engine.client.api.images(name=name) for tag in image["RepoTags"]]
        assert sorted(tags) == sorted([f"{name}:{mine}", f"{name}:{elsewhere}"])
    finally:
        for owner in (mine, elsewhere):
            engine.client.api.remove_image(f"{name}:{owner}", force=True)
