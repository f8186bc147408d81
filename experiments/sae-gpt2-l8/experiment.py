"""Five kinds of dictionaries in layer 8 of GPT-2 small, against published errors.

Paper: Wang, Zhang, Su and Huang 2026, "Improving Sparse Autoencoder with Dynamic
Attention", arXiv:2604.14925: the baselines of its table on OpenWebText, as quoted by a
third party. The set-up is that of Bussmann et al. 2024, "BatchTopK Sparse
Autoencoders", arXiv:2412.06410.

Claim: the published NMSE of ReLU, JumpReLU, Gated, TopK and BatchTopK dictionaries with
3,072 to 24,576 latents, within a tenth. The published row of TopK jumps with the number
of latents (0.014, 0.059, 0.010, 0.055), so it is a noisy target.

NMSE is compared as the sum of squared errors over the sum of squares of activations,
relative to zero and not to their mean. That is assumed: no definition was found with
the quoted table or in the code of either paper. FVU, the same relative to the mean (as
Gao et al. 2024, arXiv:2406.04093, normalise), is reported beside it. Unlike the code of
Bussmann et al., activations are scaled by one number instead of one by one, and the
first token of a sequence, whose activation is far larger than all others, is neither
trained nor measured on.

This is `sae-smollm2` with other configs: the same code trains and measures.

Commands:
    mijax reproduce sae-gpt2-l8                 (weights and data from the hub)
    mijax reproduce sae-gpt2-l8 --model FOLDER --dataset none --data FOLDER
    mijax run sae-gpt2-l8/tiny                  (no weights, no text)

Runtime: see experiments/README.md.
"""

import mijax.experiment

shared = mijax.experiment.load("sae-smollm2")
Config, run = type(shared.config), shared.function
