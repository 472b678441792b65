// OpenAI's client for JavaScript, with its helpers for zod.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { runAll, thrown, usage } from "./trial.mjs";

const HELLO = [{ role: "user", content: "Hello, who are you?" }];
const GREETING = [{ role: "user", content: "Hello [[Good day to you!]]" }];
const SUM = [{ role: "user", content: '2 and 3 together? [[add({"a": 2, "b": 3}) => It is 5.]]' }];
const Mood = z.object({ is_friendly: z.boolean(), tone: z.enum(["warm", "cool"]).nullable() });
const Add = z.object({ a: z.number().int(), b: z.number().int() });
const ADD = { type: "function", function: { name: "add", parameters: z.toJSONSchema(Add), strict: true } };

const client = (endpoint, more = {}) => new OpenAI({ baseURL: endpoint.url, apiKey: endpoint.key, maxRetries: 0, ...more });
const chat = (endpoint, fields = {}) =>
  client(endpoint).chat.completions.create({ model: endpoint.model, messages: HELLO, max_completion_tokens: 6, ...fields });

usage("chat.completions.create", async (endpoint) => {
  const reply = await chat(endpoint);
  assert.ok(reply.choices[0].message.content);
  assert.ok(reply.usage.total_tokens);
});

usage("stream: for await", async (endpoint) => {
  let text = "";
  for await (const chunk of await chat(endpoint, { stream: true })) text += chunk.choices[0]?.delta?.content ?? "";
  assert.ok(text);
});

usage("stream with usage", async (endpoint) => {
  let usage;
  const stream = await chat(endpoint, { stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) usage = chunk.usage ?? usage;
  assert.ok(usage.completion_tokens);
});

usage("chat.completions.stream helper with its events", async (endpoint) => {
  let text = "";
  const stream = client(endpoint).chat.completions.stream({ model: endpoint.model, messages: GREETING });
  stream.on("content", (delta) => (text += delta));
  assert.equal(await stream.finalContent(), "Good day to you!");
  assert.equal(text, "Good day to you!");
});

usage("a stream is broken off", async (endpoint) => {
  const stream = await chat(endpoint, { stream: true, max_completion_tokens: 200 });
  for await (const chunk of stream) if (chunk) break;
  stream.controller.abort();
  assert.ok((await chat(endpoint)).choices);
});

usage("withResponse, asResponse", async (endpoint) => {
  const { data, response } = await chat(endpoint).withResponse();
  assert.ok(data.choices && response.headers.get("x-request-id"));
  assert.equal((await chat(endpoint).asResponse()).status, 200);
});

usage("the message is sent back", async (endpoint) => {
  const { message } = (await chat(endpoint)).choices[0];
  assert.ok((await chat(endpoint, { messages: [...HELLO, message, { role: "user", content: "And then?" }] })).choices);
});

usage("tools: loop by hand", async (endpoint) => {
  const messages = [...SUM];
  const { message } = (await chat(endpoint, { messages, tools: [ADD], max_completion_tokens: 60 })).choices[0];
  assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { a: 2, b: 3 });
  messages.push(message, { role: "tool", tool_call_id: message.tool_calls[0].id, content: "5" });
  const reply = await chat(endpoint, { messages, tools: [ADD], max_completion_tokens: 20 });
  assert.equal(reply.choices[0].message.content, "It is 5.");
});

usage("runTools: the helper's own loop", async (endpoint) => {
  const tool = {
    type: "function",
    function: { name: "add", parse: JSON.parse, parameters: z.toJSONSchema(Add), function: ({ a, b }) => String(a + b) },
  };
  const runner = client(endpoint).chat.completions.runTools({ model: endpoint.model, messages: SUM, tools: [tool] });
  assert.equal(await runner.finalContent(), "It is 5.");
});

usage("runTools, streamed", async (endpoint) => {
  const tool = {
    type: "function",
    function: { name: "add", parse: JSON.parse, parameters: z.toJSONSchema(Add), function: ({ a, b }) => String(a + b) },
  };
  const asked = { model: endpoint.model, messages: SUM, tools: [tool], stream: true };
  assert.equal(await client(endpoint).chat.completions.runTools(asked).finalContent(), "It is 5.");
});

usage("tool_choice required", async (endpoint) => {
  const parameters = z.toJSONSchema(z.object({ is_on: z.boolean() }));
  const tools = [{ type: "function", function: { name: "light", parameters } }];
  const reply = await chat(endpoint, { tools, tool_choice: "required", max_completion_tokens: 60 });
  assert.equal(reply.choices[0].message.tool_calls[0].function.name, "light");
});

usage("zodFunction: parsed arguments", async (endpoint) => {
  const asked = { model: endpoint.model, messages: SUM, tools: [zodFunction({ name: "add", parameters: Add })] };
  const reply = await client(endpoint).chat.completions.parse(asked);
  assert.deepEqual(reply.choices[0].message.tool_calls[0].function.parsed_arguments, { a: 2, b: 3 });
});

usage("zodResponseFormat", async (endpoint) => {
  const reply = await client(endpoint).chat.completions.parse({
    model: endpoint.model, messages: HELLO, response_format: zodResponseFormat(Mood, "mood"), temperature: 0, max_completion_tokens: 100,
  });
  assert.equal(typeof reply.choices[0].message.parsed.is_friendly, "boolean");
});

usage("zodResponseFormat: nested, lists, unions, descriptions, bounds", async (endpoint) => {
  const Part = z.object({ kind: z.literal("part"), count: z.number().int().min(1).max(9).describe("how many") });
  const Whole = z.object({ kind: z.literal("whole") });
  const Order = z.object({ mood: Mood, items: z.array(z.union([Part, Whole])).max(2), note: z.string().max(8).nullable() });
  const reply = await client(endpoint).chat.completions.parse({
    model: endpoint.model, messages: HELLO, response_format: zodResponseFormat(Order, "order"), temperature: 0, max_completion_tokens: 250,
  });
  assert.ok(Array.isArray(reply.choices[0].message.parsed.items));
});

usage("zodResponseFormat, streamed; the message is sent back", async (endpoint) => {
  const stream = client(endpoint).chat.completions.stream({
    model: endpoint.model, messages: HELLO, response_format: zodResponseFormat(Mood, "mood"), temperature: 0, max_completion_tokens: 100,
  });
  const { message } = (await stream.finalChatCompletion()).choices[0];
  assert.equal(typeof message.parsed.is_friendly, "boolean");
  assert.ok((await chat(endpoint, { messages: [...HELLO, message, ...HELLO] })).choices);
});

usage("logprobs, n, stop, seed", async (endpoint) => {
  const reply = await chat(endpoint, { logprobs: true, temperature: 0 });
  assert.ok(reply.choices[0].logprobs.content.length);
  assert.equal((await chat(endpoint, { n: 2, stop: ["\n"], seed: 1 })).choices.length, 2);
});

usage("timeout, abort signal", async (endpoint) => {
  const long = { model: endpoint.model, messages: HELLO, max_completion_tokens: 400 };
  await thrown(OpenAI.APIConnectionTimeoutError, () => client(endpoint).chat.completions.create(long, { timeout: 50 }));
  const signal = AbortSignal.timeout(50);
  await thrown(OpenAI.APIUserAbortError, () => client(endpoint).chat.completions.create(long, { signal }));
});

usage("errors: NotFoundError, BadRequestError", async (endpoint) => {
  await thrown(OpenAI.NotFoundError, () => chat(endpoint, { model: "nobody" }));
  assert.equal((await thrown(OpenAI.BadRequestError, () => chat(endpoint, { temperature: 9 }))).param, "temperature");
});

usage("models.list, completions, embeddings", async (endpoint) => {
  const ids = [];
  for await (const model of client(endpoint).models.list()) ids.push(model.id);
  assert.ok(ids.includes(endpoint.model));
  const text = await client(endpoint).completions.create({ model: endpoint.model, prompt: "Once", max_tokens: 4 });
  assert.ok(text.choices[0].text);
});

usage("embeddings (base64 unless told otherwise)", async (endpoint) => {
  const found = await client(endpoint).embeddings.create({ model: endpoint.model, input: ["a cat", "a dog"] });
  assert.ok(found.data[1].embedding.length > 100);
});

usage("responses.create", async (endpoint) => {
  const reply = await client(endpoint).responses.create({ model: endpoint.model, input: "Hello", max_output_tokens: 16 });
  assert.ok(reply.output_text);
});

usage("responses, streamed", async (endpoint) => {
  const kinds = [];
  const asked = { model: endpoint.model, input: "Hello", max_output_tokens: 16, stream: true };
  for await (const event of await client(endpoint).responses.create(asked)) kinds.push(event.type);
  assert.equal(kinds[0], "response.created");
  assert.ok(kinds.includes("response.output_text.delta"));
});

usage("responses.parse with zodTextFormat", async (endpoint) => {
  const reply = await client(endpoint).responses.parse({
    model: endpoint.model, input: "Hello", text: { format: zodTextFormat(Mood, "mood") }, temperature: 0, max_output_tokens: 100,
  });
  assert.equal(typeof reply.output_parsed.is_friendly, "boolean");
});

await runAll();
