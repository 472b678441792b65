"""Scores of replies from 0 to 1: facts, exact texts, patterns, JSON, tool calls, ROUGE-L, chrF."""
