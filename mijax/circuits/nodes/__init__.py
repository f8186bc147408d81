"""Circuits of nodes: scores, selection and evaluation on any model that marks sites."""
