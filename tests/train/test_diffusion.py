"""What the denoiser learns from: noising, targets and weights against diffusers and by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dive_fast.train.diffusion import DiffusionLoss, noisy_batch
from tests.support.refusals import refused

NOISE_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def test_noising_and_targets_match_diffusers():
    from diffusers import DDPMScheduler

    reference = DDPMScheduler.from_config(NOISE_SCHEDULE)
    objective = DiffusionLoss.from_config({**NOISE_SCHEDULE, "prediction_type": "v_prediction"}, 1.0)
    latents = torch.randn(16, 4, 4, 2)
    noisy, noise, timesteps = noisy_batch(latents, objective.alphas, torch.Generator().manual_seed(0))
    assert torch.allclose(noisy, reference.add_noise(latents, noise, timesteps), atol=1e-6)
    assert sorted(int(t) * 16 // 1000 for t in timesteps) == list(range(16))  # one in each stratum
    velocity = reference.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(objective.target(latents, noise, timesteps), velocity)
    assert torch.equal(objective.weights(timesteps), torch.ones(16))


def test_more_timesteps_come_from_the_noisier_half():
    alphas = DiffusionLoss.from_config(NOISE_SCHEDULE, 3.0).alphas
    for share in (0.25, 0.5, 0.75):
        _, _, timesteps = noisy_batch(torch.zeros(64, 1, 1, 1), alphas, torch.Generator().manual_seed(0), share)
        noisier = timesteps >= 500
        assert noisier.sum() == 64 * share
        # evenly within each half: one in each stratum of its own
        for half, start in ((timesteps[~noisier], 0), (timesteps[noisier], 500)):
            at = np.sort((half - start).double().numpy()) / 500 * len(half)
            assert np.all(np.abs(at - (np.arange(len(half)) + 0.5)) <= 0.5 + len(half) / 500)  # a timestep is whole


def test_epsilon_models_are_weighted_towards_noise():
    objective = DiffusionLoss.from_config(NOISE_SCHEDULE, 3.0)
    latents, noise = torch.randn(2, 4, 4, 4, 2)
    timesteps = torch.tensor([0, 300, 600, 999])
    torch.testing.assert_close(objective.target(latents, noise, timesteps), noise)
    snr = objective.alphas[timesteps] / (1 - objective.alphas[timesteps])
    assert torch.allclose(objective.weights(timesteps), (1 / snr.sqrt()).clamp(max=3.0))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_weights_of_min_snr_are_the_papers_and_plain_ones_are_equal(prediction):
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    config = {**NOISE_SCHEDULE, "prediction_type": prediction}
    objective = replace(DiffusionLoss.from_config(config, 3.0), weighting="min-snr", snr_gamma=4.0)
    timesteps = torch.tensor([0, 100, 400, 700, 999])
    snr = compute_snr(DDPMScheduler.from_config(config), timesteps)
    capped = torch.minimum(snr, torch.tensor(4.0))
    expected = capped / snr if prediction == "epsilon" else capped / (snr + 1)
    torch.testing.assert_close(objective.weights(timesteps), expected)
    assert torch.equal(replace(objective, of_epsilon=True).weights(timesteps), objective.weights(timesteps))
    for of_epsilon in (False, True):
        plain = replace(objective, weighting="plain", of_epsilon=of_epsilon)
        assert torch.equal(plain.weights(timesteps), torch.ones(5))


def test_an_error_of_v_can_count_as_the_error_of_epsilon_that_it_makes():
    """Diffusers turns both answers into epsilon; a model of epsilon would have been weighted by these errors."""
    from diffusers import DPMSolverMultistepScheduler

    config = {**NOISE_SCHEDULE, "prediction_type": "v_prediction"}
    solver = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
    solver.set_timesteps(1000)
    objective = replace(DiffusionLoss.from_config(config, 3.0), of_epsilon=True)
    latents, noise, wrong = torch.randn(3, 4, 4, 4, 2, dtype=torch.float64)
    timesteps = torch.tensor([20, 300, 600, 990])
    alpha = objective.alphas.double()[timesteps].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    target = objective.target(latents, noise, timesteps)
    expected = []
    for i, timestep in enumerate(timesteps):
        solver._step_index = (solver.timesteps == timestep).nonzero().item()
        predicted, true = (solver.convert_model_output(v[i], sample=noisy[i]) for v in (target + wrong, target))
        expected.append((predicted - true).square().mean())
    epsilon = DiffusionLoss.from_config(NOISE_SCHEDULE, 3.0)
    weighted = wrong.square().mean(dim=(1, 2, 3)) * objective.weights(timesteps)
    expected = torch.stack(expected) * epsilon.weights(timesteps)
    torch.testing.assert_close(weighted, expected, rtol=1e-4, atol=1e-8)  # diffusers' sigmas are float32
    assert torch.equal(epsilon.weights(timesteps), replace(epsilon, of_epsilon=True).weights(timesteps))


def test_a_model_of_another_prediction_is_not_trained():
    refused("'sample'", DiffusionLoss.from_config, {"prediction_type": "sample"}, 8.0)
