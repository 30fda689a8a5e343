"""The actor between driver, controller and workers, without Ray around it."""

import asyncio

from cifar_ray.training.loop.command import Command
from cifar_ray.training.on_ray.channel import _Exchange


def test_a_request_to_save_reaches_the_worker_once_and_returns_when_it_is_done() -> None:
    async def talk() -> None:
        exchange = _Exchange()
        asked = asyncio.create_task(exchange.next_command())
        await asyncio.sleep(0)
        save = asyncio.create_task(exchange.save(60))
        assert await asked == Command.SAVE
        again = asyncio.create_task(exchange.next_command())
        await asyncio.sleep(0)
        assert not again.done()
        assert not save.done()
        await exchange.saved()
        await asyncio.wait_for(save, 5)
        again.cancel()

    asyncio.run(talk())


def test_a_worker_that_cannot_save_is_waited_for_only_so_long() -> None:
    asyncio.run(asyncio.wait_for(_Exchange().save(0.01), 5))


def test_a_request_to_stop_reaches_workers_that_start_later() -> None:
    async def talk() -> None:
        exchange = _Exchange()
        await exchange.stop()
        await exchange.save(0.01)
        assert await exchange.next_command() == await exchange.next_command() == Command.STOP

    asyncio.run(talk())
