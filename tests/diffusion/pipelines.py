"""What diffusers' own image-to-image pipeline makes of one candidate: the oracle of the sampler's tests."""

import diffusers
import torch

SEEDS = [[1, 2], [3, 4], [5, 6]]
SOLVERS = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "folder": ("PNDMScheduler", {}),
}


def reference(
    pipeline, scheduler, image, prompt, seed, output_type, timestep_spacing="leading", guided=None, **options
):
    name, extra = SOLVERS.get(scheduler, (scheduler, {}))
    solver = getattr(diffusers, name).from_config(pipeline.scheduler.config, timestep_spacing=timestep_spacing, **extra)
    # The pipeline's constructor corrects the scheduler's clipping and first timestep. Assigning a scheduler does not.
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(
        **{**pipeline.components, "scheduler": solver}, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    if guided is not None:
        options = {
            **options,
            "callback_on_step_end": without_guidance_after(guided),
            "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
        }
    return pipeline(
        prompt,
        image=(image[None] + 1) / 2,
        generator=torch.Generator().manual_seed(seed),
        output_type=output_type,
        **options,
    ).images[0], pipeline.num_timesteps


def without_guidance_after(step):
    """diffusers' own way to end guidance early: the pipeline asks this callback after each step."""

    def callback(pipeline, i, t, tensors):
        if i + 1 == step:
            pipeline._guidance_scale = 0.0
            return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[1]}
        return {}

    return callback
