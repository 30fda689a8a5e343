"""Decide which version answers a request: production, or a version on trial."""

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

# If a version on trial does not answer within this fraction of the time limit of a request, production answers instead.
_STAGED_TIMEOUT_FRACTION = 0.5


class StagedPipeline:
    """A pipeline with versions on trial. Without trials, it costs one dictionary lookup per request.

    Args:
        pipeline: runs the models.
        trials: the versions on trial.
        config: default model and time limit.
        observer: receives the events of versions on trial.
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
            reference: the model that the request names; if it names a version, that version answers.
            sender: id and client of the request: one version answers all requests of a client. Without a client, each request draws.

        Raises:
            OverloadedError: and other errors, as `Pipeline.run`. An error of the version on trial is not raised: production answers.
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
        """The answer of the version on trial; `None` if it gives none."""
        stage, tally = trial.stage, trial.tally
        try:
            async with asyncio.timeout(_STAGED_TIMEOUT_FRACTION * self._config.request_timeout_s):
                outcome = await self._pipeline.run(pictures, stage.reference)
        except OverloadedError:  # the queue is the same for production
            raise
        except LoadingError:
            tally.not_ready += 1
            return None
        except PixelSizeError:  # production may accept this size
            return None
        except Exception as error:  # no error of a version on trial may reach the client
            tally.staged.could_not_answer()
            self._observer.trial_event(stage.name, stage.version, "failed", f"{type(error).__name__}: {error}")
            return None
        tally.staged.answered(*outcome.confidences, outcome.timings_ms["total"])
        self._observer.trial_event(stage.name, stage.version, "answered")
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

    The name of a client determines a number between 0 and 1, so the same version answers all its requests. If the share grows, clients of
    the version on trial stay with it.
    """
    if client is None:
        place = secrets.randbits(53) / 2**53
    else:
        place = int.from_bytes(hashlib.sha256(f"{stage.reference}\0{client}".encode()).digest()[:8]) / 2**64
    return place < stage.share
