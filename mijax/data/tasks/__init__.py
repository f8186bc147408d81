"""Behaviors to study, as prompts with counterfactuals and answers."""
