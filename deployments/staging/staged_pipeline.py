"""Decides which version answers a request: production, or a version on trial."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Sequence

from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.store.aliases import PRODUCTION
from cifar_ray.store.staging.stage_file import Stage
from deployments.predicting.contract import LoadingError, Observer, Picture, PixelSizeError
from deployments.predicting.pipeline import Outcome, OverloadedError, Pipeline
from deployments.predicting.sender import Sender
from deployments.staging.comparisons import Comparisons, Differed
from deployments.staging.trials import Trial, Trials

# Part of the time for a request after which production answers instead of a version on trial that does not
_PART_OF_TIME = 0.5


class StagedPipeline:
    """A pipeline with versions on trial. Without any it costs a lookup in a dictionary.

    Args:
        pipeline: runs the models.
        trials: the versions on trial.
        config: default model and time limit.
        observer: receives what happens to versions on trial.
        differed: as for `Comparisons`.
    """

    def __init__(self, pipeline: Pipeline, trials: Trials, config: ServeConfig, observer: Observer, differed: Differed) -> None:
        self._pipeline = pipeline
        self._trials = trials
        self._config = config
        self._observer = observer
        self._comparisons = Comparisons(pipeline, observer, differed)

    async def run(self, pictures: Sequence[Picture], reference: str | None, sender: Sender) -> Outcome:
        """Classify the pictures of one request.

        Args:
            pictures: image files, unchecked, or ready pixels.
            reference: the model that the request names; one with a version is never replaced by another version.
            sender: whoever asks: one client gets its answers from one version. Without its name each request draws.

        Raises:
            OverloadedError: and the other errors of `Pipeline.run`. An error of a version on trial is none: production answers.
        """
        trial = self._trial(reference)
        if trial is None:
            return await self._pipeline.run(pictures, reference)
        if is_in_share(trial.stage, sender.client) and (outcome := await self._try(trial, pictures)):
            self._comparisons.offer(trial, sender, pictures, outcome, reference)
            return outcome
        outcome = await self._ask_production(trial, pictures, reference)
        if trial.stage.is_shadow:
            self._comparisons.offer(trial, sender, pictures, outcome, trial.stage.reference)
        return outcome

    async def finish_comparisons(self) -> None:
        """Wait until all answers so far are compared."""
        await self._comparisons.finish()

    def _trial(self, reference: str | None) -> Trial | None:
        wanted = reference or self._config.model
        if wanted is None:  # the default model: known after the first answer
            known = self._pipeline.last_known(None)
            return self._trials.find(known.name) if known else None
        name, _, selector = wanted.partition("@")
        return self._trials.find(name) if selector in ("", PRODUCTION) else None

    async def _try(self, trial: Trial, pictures: Sequence[Picture]) -> Outcome | None:
        """The answer of the version on trial; `None` if it has none."""
        stage, tally = trial.stage, trial.tally
        try:
            async with asyncio.timeout(_PART_OF_TIME * self._config.request_timeout_s):
                outcome = await self._pipeline.run(pictures, stage.reference)
        except OverloadedError:  # the queue is the same for production
            raise
        except LoadingError:
            tally.not_ready += 1
            return None
        except PixelSizeError:  # production may take them
            return None
        except Exception as error:  # whatever it is, the client does not notice
            tally.staged.could_not_answer()
            self._observer.tried(stage.name, stage.version, "failed", f"{type(error).__name__}: {error}")
            return None
        tally.staged.answered(*outcome.confidences, outcome.timings_ms["total"])
        self._observer.tried(stage.name, stage.version, "answered")
        return outcome

    async def _ask_production(self, trial: Trial, pictures: Sequence[Picture], reference: str | None) -> Outcome:
        side = trial.tally.production
        try:
            outcome = await self._pipeline.run(pictures, reference)
        except (OverloadedError, PixelSizeError):
            raise
        except Exception:
            side.could_not_answer()
            raise
        side.answered(*outcome.confidences, outcome.timings_ms["total"])
        return outcome


def is_in_share(stage: Stage, client: str | None) -> bool:
    """Whether the version on trial answers a request.

    A client's place between 0 and 1 follows from its name, so it stays with one version, also when the share grows.
    """
    if client is None:
        place = secrets.randbits(53) / 2**53
    else:
        place = int.from_bytes(hashlib.sha256(f"{stage.reference}\0{client}".encode()).digest()[:8]) / 2**64
    return place < stage.share
