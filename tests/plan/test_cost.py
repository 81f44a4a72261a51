"""The arithmetic against what was published: FLOPs, device hours and money of models whose cost is known."""

import pytest

from tutelage.core.errors import ConfigError
from tutelage.plan.cost import (
    bill,
    flops_6nd,
    hoffmann_loss,
    hoffmann_optimum,
    hoffmann_tokens,
    mfu_of,
    optimal_tokens,
    training_flops,
)
from tutelage.plan.hardware import TABLE, parse_gpus

A100, H100 = TABLE["A100-80"], TABLE["H100"]


def test_gpt3_took_3e23_flops():
    """Brown et al. 2020, table D.1: GPT-3 175B (174,600M parameters), 300B tokens, 3.14e23 FLOPs; within 1%."""
    published = {174.6e9: 3.14e23, 12.85e9: 2.31e22, 6.66e9: 1.20e22, 1.32e9: 2.38e21, 125e6: 2.25e20}
    for parameters, flops in published.items():
        assert flops_6nd(parameters, 300e9) == pytest.approx(flops, rel=0.01)


LLAMA = {  # Touvron et al. 2023a, tables 2 and 15: parameters, layers, width, tokens, A100-80GB hours
    "7B": (6.74e9, 32, 4096, 1.0e12, 82_432),
    "13B": (13.02e9, 40, 5120, 1.0e12, 135_168),
    "33B": (32.53e9, 60, 6656, 1.4e12, 530_432),
    "65B": (65.29e9, 80, 8192, 1.4e12, 1_022_362),
}
LLAMA_SPEED = 380  # tokens a second and GPU of the 65B model on 2,048 of them (sec. 2.4)


def _llama_flops(name):
    parameters, layers, width, tokens, hours = LLAMA[name]
    return training_flops(parameters - 32000 * width, layers, width, 2048), tokens, hours


def test_llama_65b_took_a_million_hours():
    """From the paper's 380 tokens/s and GPU alone: hours within 1%, and its "approximately 21 days" on 2,048 GPUs."""
    each, tokens, hours = _llama_flops("65B")
    mfu = mfu_of(LLAMA_SPEED, each, 1, A100.peak)
    found = bill(each * tokens, 2048, A100.peak, mfu)
    assert found.device_hours == pytest.approx(hours, rel=0.01)
    assert found.days == pytest.approx(21, rel=0.02)


@pytest.mark.parametrize("name", ["7B", "13B", "33B"])
def test_llama_65b_utilisation_tells_the_smaller_ones_hours(name):
    """The other sizes, at the utilisation of the largest: within 12% (they ran at 0.45 to 0.54 of the peak)."""
    each, _, _ = _llama_flops("65B")
    mfu = mfu_of(LLAMA_SPEED, each, 1, A100.peak)
    each, tokens, hours = _llama_flops(name)
    assert bill(each * tokens, 2048, A100.peak, mfu).device_hours == pytest.approx(hours, rel=0.12)


def test_nanochat_speedrun():
    """The report that nanochat's speedrun (d20, 8xH100) writes of itself: 560,988,160 parameters (an untied table of
    65,536 x 1,280), 20 tokens a parameter, 3.491758e9 FLOPs a token, 3.917670e19 in all, MFU 48.04%, 172.57 minutes.
    """
    parameters, width = 560_988_160, 1280
    each = training_flops(parameters - 65_536 * width, 20, width, 2048)
    assert each == pytest.approx(3.491758e9, rel=1e-6)
    tokens = 21_400 * 524_288
    assert tokens == pytest.approx(optimal_tokens(parameters), rel=1e-4)
    assert each * tokens == pytest.approx(3.917670e19, rel=1e-6)
    assert bill(each * tokens, 8, H100.peak, 0.4804).seconds / 60 == pytest.approx(172.57, rel=0.01)


def test_chinchilla_had_20_tokens_a_parameter():
    assert optimal_tokens(70e9) == 1.4e12


def test_the_fitted_law_is_at_its_optimum():
    """No other share of the same compute between parameters and tokens gives a lower loss (Hoffmann et al. 2022)."""
    for parameters in (1e8, 1e9, 67e9):
        tokens = hoffmann_tokens(parameters)
        flops = flops_6nd(parameters, tokens)
        for other in (0.9, 1.1):
            worse = hoffmann_loss(parameters * other, flops / (6 * parameters * other))
            assert worse > hoffmann_loss(parameters, tokens)
        assert hoffmann_optimum(flops) == pytest.approx((parameters, tokens), rel=1e-6)


def test_bill_and_its_limits():
    found = bill(1e18, 4, 1e15, 0.5, price=2.0)
    assert (found.seconds, found.device_hours, found.cost) == (500.0, 500 * 4 / 3600, 500 * 4 / 3600 * 2)
    for mfu in (0, 1.5):
        with pytest.raises(ValueError, match="mfu"):
            bill(1e18, 1, 1e15, mfu)


def test_gpus_are_a_number_and_a_name():
    assert parse_gpus("64xH100") == (64, H100)
    assert parse_gpus("a100-80") == (1, A100)
    assert parse_gpus("8xA100")[1] is A100
    count, cpu = parse_gpus("cpu")
    assert count == 1 and cpu.is_cpu and cpu.peak > 1e9 and cpu.memory > 1e8
    with pytest.raises(ConfigError, match="did you mean 'H100'"):
        parse_gpus("8xH1000")
    for odd in ("", "8x", "0xH100", "H100x8x"):
        with pytest.raises(ConfigError):
            parse_gpus(odd)
