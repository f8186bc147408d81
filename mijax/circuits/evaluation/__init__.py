"""Faithfulness, completeness, stability and recovery of circuits."""
