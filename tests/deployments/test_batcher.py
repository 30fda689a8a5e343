"""The coalescer over a model that answers when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from deployments.predicting.batcher import Batcher
from deployments.predicting.contract import Classified, ModelInfo, Pixels, ReplicaLostError, Status

PETS = ModelInfo("pets", 1, ("cat", "dog"), 1, "pad")


class Model:
    """Keeps each call until it is told to answer; an image's first class is its value ÷ 255."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int], asyncio.Future[None]]] = []

    async def classify(self, key: str, images: Pixels) -> Classified | Status:
        may_answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.calls.append((key, images[:, 0, 0, 0].tolist(), may_answer))
        await may_answer
        cats = images[:, 0, 0, 0].astype(np.float32) / 255
        return Classified(PETS, np.stack([cats, 1 - cats], axis=1), cats > 0.5, len(images), 0.001)

    @property
    def batches(self) -> list[list[int]]:
        return [values for _, values, _ in self.calls]

    def answer(self, call: int, failure: Exception | None = None) -> None:
        future = self.calls[call][2]
        future.set_exception(failure) if failure else future.set_result(None)


def images(*values: int) -> Pixels:
    return np.array(values, np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


Play = Callable[[Batcher[str], Model], Coroutine[Any, Any, None]]


@pytest.fixture
def play() -> Callable[[Play], None]:
    def run(story: Play) -> None:
        async def tell() -> None:
            model = Model()
            async with asyncio.timeout(10):
                await story(Batcher(model.classify, max_batch_size=4, max_calls=1), model)

        asyncio.run(tell())

    return run


def values(answer: Classified | Status) -> list[int]:
    assert isinstance(answer, Classified)
    return (answer.probabilities[:, 0] * 255).round().astype(int).tolist()


def test_a_lone_request_leaves_at_once_and_a_batch_grows_while_it_runs(play: Callable[[Play], None]) -> None:
    async def story(batcher: Batcher[str], model: Model) -> None:
        first = asyncio.create_task(batcher.classify("a", images(1)))
        await settle()
        assert model.batches == [[1]]
        rest = [asyncio.create_task(batcher.classify("a", images(value))) for value in (2, 3, 4)]
        await settle()
        assert model.batches == [[1]]
        model.answer(0)
        await settle()
        assert model.batches == [[1], [2, 3, 4]]
        model.answer(1)
        assert [values(answer) for answer in await asyncio.gather(first, *rest)] == [[1], [2], [3], [4]]

    play(story)


def test_a_batch_holds_no_more_than_allowed_keeps_the_order_and_does_not_divide_a_request(play: Callable[[Play], None]) -> None:
    async def story(batcher: Batcher[str], model: Model) -> None:
        requests = [images(1, 2), images(3), images(4, 5), images(6), images(7, 8, 9, 10)]
        tasks = [asyncio.create_task(batcher.classify("a", request)) for request in requests]
        for call in range(3):
            await settle()
            model.answer(call)
        assert [values(answer) for answer in await asyncio.gather(*tasks)] == [[1, 2], [3], [4, 5], [6], [7, 8, 9, 10]]
        assert model.batches == [[1, 2, 3], [4, 5, 6], [7, 8, 9, 10]]

    play(story)


def test_images_of_another_model_make_a_batch_of_their_own_and_wait_for_none(play: Callable[[Play], None]) -> None:
    async def story(batcher: Batcher[str], model: Model) -> None:
        tasks = [asyncio.create_task(batcher.classify(key, images(1))) for key in ("a", "b", "a")]
        await settle()
        assert [(key, batch) for key, batch, _ in model.calls] == [("a", [1, 1]), ("b", [1])]
        model.answer(0)
        model.answer(1)
        await asyncio.gather(*tasks)

    play(story)


def test_who_hung_up_while_waiting_costs_no_inference(play: Callable[[Play], None]) -> None:
    async def story(batcher: Batcher[str], model: Model) -> None:
        tasks = [asyncio.create_task(batcher.classify("a", images(1)))]
        await settle()
        tasks += [asyncio.create_task(batcher.classify("a", images(value))) for value in (2, 3)]
        await settle()
        tasks.pop(1).cancel()
        model.answer(0)
        await settle()
        model.answer(1)
        await asyncio.gather(*tasks)
        assert model.batches == [[1], [3]]

    play(story)


def test_who_hung_up_during_a_batch_does_not_take_the_others_along(play: Callable[[Play], None]) -> None:
    async def story(batcher: Batcher[str], model: Model) -> None:
        tasks = [asyncio.create_task(batcher.classify("a", images(value))) for value in (1, 2)]
        await settle()
        tasks[0].cancel()
        await settle()
        model.answer(0)
        assert values(await tasks[1]) == [2]

    play(story)


def test_a_batch_of_a_lost_replica_is_sent_again_before_what_came_later(play: Callable[[Play], None]) -> None:
    async def story(batcher: Batcher[str], model: Model) -> None:
        tasks = [asyncio.create_task(batcher.classify("a", images(1, 2)))]
        await settle()
        tasks.append(asyncio.create_task(batcher.classify("a", images(3))))
        await settle()
        model.answer(0, ReplicaLostError("gone"))
        await settle()
        model.answer(1)
        assert [values(answer) for answer in await asyncio.gather(*tasks)] == [[1, 2], [3]]
        assert model.batches == [[1, 2], [1, 2, 3]]

    play(story)


def test_a_batch_that_loses_three_replicas_is_given_up(play: Callable[[Play], None]) -> None:
    async def story(batcher: Batcher[str], model: Model) -> None:
        task = asyncio.create_task(batcher.classify("a", images(1)))
        for call in range(3):
            await settle()
            model.answer(call, ReplicaLostError("gone"))
        with pytest.raises(ReplicaLostError):
            await task
        await settle()
        assert len(model.calls) == 3

    play(story)


def test_a_failure_reaches_all_of_its_batch_and_nobody_else(play: Callable[[Play], None]) -> None:
    async def story(batcher: Batcher[str], model: Model) -> None:
        tasks = [asyncio.create_task(batcher.classify("a", images(value))) for value in (1, 2)]
        await settle()
        model.answer(0, RuntimeError("broken"))
        assert [str(failure) for failure in await asyncio.gather(*tasks, return_exceptions=True)] == ["broken", "broken"]
        after = asyncio.create_task(batcher.classify("a", images(3)))
        await settle()
        model.answer(1)
        assert values(await after) == [3]

    play(story)
