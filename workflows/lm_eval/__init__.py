"""Tasks of EleutherAI's lm-evaluation-harness, answered by our engines through the endpoint's code.

tasks = LmEvalTasks(spec.evaluate)                        # workflows/lm_eval/tasks.py
requests = tasks.requests(tokenizer, max_positions)       # what to ask the endpoint, each request once
answers = ...                                             # of each model: request.read(the endpoint's JSON)
results = tasks.results(tokenizer, max_positions, answers)

lm-eval builds the prompts and scores the answers; it never loads a model. `requests` and `results` each run it once,
with a model that notes the requests, and with one that has the answers.
"""
