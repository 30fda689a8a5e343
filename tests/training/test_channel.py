"""The actor between driver, controller and workers, without Ray around it."""

import asyncio
from collections.abc import Awaitable, Callable

from cifar_ray.training.loop.command import Command
from cifar_ray.training.on_ray.channel import _Exchange


def talk(conversation: Callable[[_Exchange], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(conversation(_Exchange()), 10)

    asyncio.run(run())


async def settle() -> None:
    """Lets all tasks run as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_request_to_save_reaches_the_worker_once_and_returns_when_it_is_confirmed() -> None:
    async def conversation(exchange: _Exchange) -> None:
        asked = asyncio.create_task(exchange.next_command(0))
        await settle()
        save = asyncio.create_task(exchange.save(60))
        assert await asked == (Command.SAVE, 1)
        again = asyncio.create_task(exchange.next_command(1))
        await settle()
        assert not again.done()
        assert not save.done()
        await exchange.confirm(1)
        await save
        again.cancel()

    talk(conversation)


def test_two_requests_that_come_together_are_both_answered_by_one_checkpoint() -> None:
    async def conversation(exchange: _Exchange) -> None:
        first, second = (asyncio.create_task(exchange.save(60)) for _ in range(2))
        await settle()
        assert await exchange.next_command(0) == (Command.SAVE, 2)
        await exchange.confirm(2)
        await asyncio.gather(first, second)

    talk(conversation)


def test_a_request_between_two_questions_of_the_worker_is_not_lost() -> None:
    async def conversation(exchange: _Exchange) -> None:
        first = asyncio.create_task(exchange.save(60))
        await settle()
        assert await exchange.next_command(0) == (Command.SAVE, 1)
        second = asyncio.create_task(exchange.save(60))  # the worker still writes, and has not asked again
        await settle()
        await exchange.confirm(1)
        await first
        assert not second.done()
        assert await exchange.next_command(1) == (Command.SAVE, 2)
        await exchange.confirm(2)
        await second

    talk(conversation)


def test_workers_that_start_later_are_not_asked_for_what_was_confirmed() -> None:
    async def conversation(exchange: _Exchange) -> None:
        save = asyncio.create_task(exchange.save(60))
        await settle()
        await exchange.confirm(1)
        await save
        asked = asyncio.create_task(exchange.next_command(0))
        await settle()
        assert not asked.done()
        asked.cancel()

    talk(conversation)


def test_a_worker_that_cannot_save_is_waited_for_only_so_long() -> None:
    async def conversation(exchange: _Exchange) -> None:
        await exchange.save(0.01)

    talk(conversation)


def test_a_request_to_stop_reaches_workers_that_start_later_whatever_else_is_asked() -> None:
    async def conversation(exchange: _Exchange) -> None:
        asked = asyncio.create_task(exchange.next_command(0))
        await settle()
        await exchange.stop()
        await exchange.save(0.01)
        assert (await asked)[0] == Command.STOP
        assert (await exchange.next_command(0))[0] == (await exchange.next_command(5))[0] == Command.STOP

    talk(conversation)
