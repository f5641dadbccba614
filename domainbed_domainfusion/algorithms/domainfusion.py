"""DomainFusion (Huang et al., ECCV 2024): a classifier trained with a frozen latent diffusion model in the loop.

Read `DomainFusion.update` and `DomainFusion.generate` beside the paper's Algorithm 1; the line numbers are its.
"""

import math
import warnings
from functools import partial

import torch
import torch.nn.functional as F

from ..diffusion import style
from ..diffusion.distillation import surrogate
from ..diffusion.source import resolve_source
from ..generated.dataset import Generated, GenerateDataset, round_begins, uses_generated
from ..generated.gallery import Gallery
from ..generated.identity import model_identity, run_identity, sources_of
from ..generated.saved_rounds import SavedRounds, weights_digest
from ..hosting import context, host
from ..hosting import hparams as table
from ..pixels import PixelRange
from ..seeding import generator_of, seed_of
from ..stopwatch import Stopwatch


class DomainFusion(host.algorithms.ERM):
    """One step minimises  λ1·CE(raw) + λ2·LD(x, y, θ, φ) + λ3·CE(generated).

    The classifier, its optimizer and `predict` are ERM's. φ, the diffusion model, is loaded at the first step, shared
    by the process, and outside state_dict, parameters, deepcopy and pickle; so is the generate-dataset.

    Raises InputError for hparams out of range and for a diffusion model that cannot be used.
    """

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        table.check_values(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.pixel_range = PixelRange.of(input_shape, context.current().dataset)
        self.class_names = context.prompt_names(hparams["class_names"], num_classes)
        self.total_steps = context.current().total_steps
        self.step = 0
        self._diffusion: DiffusionSide | None = None  # noqa: F821 - imported with the model, at the first step
        self._generate_dataset: GenerateDataset | None = None
        self.uses_generated = uses_generated(hparams)
        if self.uses_generated or hparams["lambda2"] > 0:
            resolve_source(hparams["ldm"], hparams["ldm_revision"], hparams["ldm_decoder"], hparams["scheduler"])

    def update(self, minibatches, unlabeled=None) -> dict[str, float]:
        """One step of Algorithm 1 on [(x, y)] per training domain, x: (B, C, H, W) as the host's transform leaves it.

        Returns the losses, the mean confidence and LD coefficient, what was generated, and the seconds both took.
        """
        x, y = (torch.cat(parts) for parts in zip(*minibatches))

        with Stopwatch(x.device) as generation:
            n_generated, seconds_saved = self._refresh_if_due(x.device)  # lines 4 to 13
        x_gen, y_gen = self._generated_minibatch(x, y)
        logits, logits_gen = self._classify(x, x_gen)

        with Stopwatch(x.device) as distillation:  # line 14
            on_raw = self.hparams["ld_input"] == "raw"
            ld_loss, ld_values = self._latent_distillation(*(x, y, logits) if on_raw else (x_gen, y_gen, logits_gen))
        raw_loss = F.cross_entropy(logits, y)  # line 15
        generated_loss = F.cross_entropy(logits_gen, y_gen)  # line 16
        loss = (
            self.hparams["lambda1"] * raw_loss
            + self.hparams["lambda2"] * ld_loss
            + self.hparams["lambda3"] * generated_loss
        )

        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()  # line 17
        self.step += 1
        return {
            "loss": loss.item(),
            "raw_loss": raw_loss.item(),
            "generated_loss": generated_loss.item(),
            **ld_values,
            "generated_images": float(n_generated),
            "generation_seconds": generation.seconds + seconds_saved,
            "ld_seconds": distillation.seconds,
        }

    @torch.no_grad()
    def generate(self, x: torch.Tensor, y: torch.Tensor, seeds: list[list[int]], cache=None) -> Generated:
        """Lines 7 to 12 for a minibatch. x: (B, 3, S, S) in [-1, 1], y: (B,), one seed per image and candidate.

        cache: a CandidateCache that the candidates are taken from where it has them.
        """
        device = next(self.parameters()).device
        x, y = x.to(device), y.to(device)
        candidates = (cache or self._diffusion.candidates).sample(x, y, seeds)  # line 7
        if not self.hparams["sampling_strategy"]:
            first = torch.zeros(len(x), dtype=torch.long)
            return Generated(candidates.images[:, 0], first, first)

        ldm, latent = self._diffusion.ldm, self.hparams["style_space"] == "latent"
        mu0, sigma0, content0 = style.decompose(ldm.encode(x) if latent else x)  # line 8
        mu, sigma, content = style.decompose(candidates.latents if latent else candidates.images)  # line 9
        similarity, confidence = self._judge(x, content0, candidates.images, content, y)
        divergence = style.style_divergence(mu0, sigma0, mu, sigma, self.hparams["style_divergence"])
        i = torch.arange(len(x), device=device)
        c = style.choose_content(similarity, confidence, self.hparams["content_weight"])  # line 10
        s = style.choose_style(divergence)  # line 11
        x_gen = style.adain(mu[i, s], sigma[i, s], content[i, c])  # line 12
        x_gen = ldm.decode(x_gen) if latent else x_gen.clamp(-1, 1)
        return Generated(x_gen, c.cpu(), s.cpu())

    @torch.no_grad()
    def confidence(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """p of images as φ sees them, the softmax probability of the true class. Call it in eval mode.

        x: (B, 3, S, S) in [-1, 1], y: (B,); returns (B,) in [0, 1], on the CPU.
        """
        device = next(self.parameters()).device
        probabilities = self.predict(self.pixel_range.to_classifier(x.to(device))).softmax(-1)
        return probabilities.gather(1, y.to(device)[:, None])[:, 0].cpu()

    def learning_rate(self, step: int) -> float:
        """Half a cosine over the run's real length, from `lr` to zero; or `lr` (S, 4.3)."""
        if self.hparams["lr_schedule"] == "constant":
            return self.hparams["lr"]
        return self.hparams["lr"] * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.total_steps)))

    def _judge(self, x, content0, images, content, y) -> tuple[torch.Tensor, torch.Tensor]:
        """What line 10 asks of θ, in eval mode: cos(feature(c0), feature(cj)) and confidence(cj, y), both (B, N)."""
        B, N = images.shape[:2]
        features = self.featurizer(self.pixel_range.to_classifier(images.flatten(0, 1)))
        confidence = self.classifier(features).softmax(-1).gather(1, y.repeat_interleave(N)[:, None]).view(B, N)
        if self.hparams["content_feature"] == "classifier":
            features0 = self.featurizer(self.pixel_range.to_classifier(x))
        else:
            features0, features = content0, content
        return F.cosine_similarity(features0.reshape(B, 1, -1), features.reshape(B, N, -1), dim=-1), confidence

    def _refresh_if_due(self, device: torch.device) -> tuple[int, float]:
        """Line 4: run a round of generation at the start of every Itv-th epoch.

        Returns how many images it replaced, and the seconds that those taken from disk took when they were made.
        """
        if self._diffusion is None and (self.uses_generated or self.hparams["lambda2"] > 0):
            from .diffusion_side import DiffusionSide  # here, because diffusers takes seconds to import

            self._diffusion = DiffusionSide.load(self.hparams, self.class_names, device)
            if self.hparams["candidate_cache"] is not None and self.uses_generated:
                self._diffusion.share_candidates(
                    self.hparams["candidate_cache"], model_identity(self.hparams)["sha256"]
                )
            self._generate_dataset = self._new_generate_dataset()
        if not self.uses_generated or not self._generates_at(self.step):
            return 0, 0.0
        self.eval()
        first = self._generate_dataset.rounds == 0
        generate = partial(self.generate, cache=self._diffusion.cache) if first else self.generate
        n_generated = self._generate_dataset.refresh(self.step, generate, self.hparams["generation_batch"])
        self.train()
        return n_generated, self._generate_dataset.seconds_saved

    def _generates_at(self, step: int) -> bool:
        """`round_begins`; False where there is no run, which is said once."""
        steps_per_epoch = context.current().steps_per_epoch
        if steps_per_epoch is None:
            if step == 0:
                warnings.warn(
                    "DomainFusion generates nothing here: outside the host's train script it knows neither "
                    "the training in-splits nor the length of an epoch.",
                    stacklevel=2,
                )
            return False
        return round_begins(step, steps_per_epoch, self.hparams)

    def _generated_minibatch(self, x, y) -> tuple[torch.Tensor, torch.Tensor]:
        """A minibatch of the generate-dataset; until its first round it is a copy of the raw one (line 1)."""
        if self._generate_dataset is None or self._generate_dataset.rounds == 0:
            return x, y
        x_gen, y_gen = self._generate_dataset.minibatch(self.step)
        return x_gen.to(x.device), y_gen.to(x.device)

    def _classify(self, x, x_gen) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of both minibatches in one pass, so that batch statistics are of what θ is trained on."""
        if x_gen is x:
            logits = self.predict(x)
            return logits, logits
        return self.predict(torch.cat([x, x_gen])).split([len(x), len(x_gen)])

    def _latent_distillation(self, x, y, logits) -> tuple[torch.Tensor, dict[str, float]]:
        """Algorithm 2 as a scalar whose gradient is Σ a_i ∇p_i / B, and what to report of it."""
        confidence = logits.softmax(-1).gather(1, y[:, None])[:, 0]
        if self.hparams["lambda2"] == 0:
            return logits.new_zeros(()), _ld_values(confidence, logits.new_zeros(1), logits.new_zeros(1))
        seed, n = context.current().seed, self.hparams["ld_images"] or len(x)
        seen = torch.randperm(len(x), generator=generator_of(seed, "ld images", self.step))[:n].to(x.device)
        p = confidence[seen]
        images = self.pixel_range.to_diffusion(x[seen], self.hparams["image_size"])
        seeds = [seed_of(seed, "ld", self.step, i) for i in range(len(seen))]
        value, a = self._diffusion.distillation.coefficients(images, y[seen], p.detach(), seeds)
        return surrogate(value, a, p), _ld_values(confidence, value, a)

    def _new_generate_dataset(self) -> GenerateDataset:
        run = context.current()
        gallery = run.output_dir and Gallery(run.output_dir, self.hparams["gallery"], self.class_names, self.confidence)
        dataset = GenerateDataset(
            run.in_splits,
            self.hparams["image_size"],
            self.pixel_range,
            seed=run.seed,
            budget=self.hparams["generation_budget"],
            gallery=gallery,
            candidates=self.hparams["candidates"] if self.hparams["sampling_strategy"] else 1,
            workers=getattr(run.dataset, "N_WORKERS", 0),
            prompts=self._diffusion.candidates.prompts.texts if self._diffusion.cache else None,
        )
        if self.uses_generated and run.output_dir and run.in_splits and self.hparams["save_generated"] != "none":
            dataset.saved = self._saved_rounds(run, dataset)
        return dataset

    def _saved_rounds(self, run: context.TrainingContext, dataset: GenerateDataset) -> SavedRounds:
        device = next(self.parameters()).device
        sources = sources_of(run.in_splits, dataset.keys, self.class_names, self._diffusion.candidates.prompts.texts)
        saved = SavedRounds(
            run.output_dir,
            run_identity(self.hparams, device),
            sources,
            self.hparams["save_generated"],
            lambda: weights_digest(self.network),
        )
        rounds = sum(self._generates_at(step) for step in range(self.total_steps))
        saved.check_space(rounds, len(dataset.keys), dataset.size)
        return saved

    def __getstate__(self) -> dict:
        """Copies and pickles hold the classifier; φ and the generated images stay with the run that made them."""
        return {**self.__dict__, "_diffusion": None, "_generate_dataset": None}


def _ld_values(confidence: torch.Tensor, value: torch.Tensor, a: torch.Tensor) -> dict[str, float]:
    return {"ld_loss": value.mean().item(), "ld_coefficient": a.mean().item(), "confidence": confidence.mean().item()}
