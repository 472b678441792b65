// Vercel's AI SDK over @ai-sdk/openai-compatible.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, Output, stepCountIs, streamText, tool, ToolLoopAgent } from "ai";
import { z } from "zod";
import { runAll, thrown, usage } from "./trial.mjs";

const SUM = '2 and 3 together? [[add({"a": 2, "b": 3}) => It is 5.]]';
const Mood = z.object({ is_friendly: z.boolean(), tone: z.enum(["warm", "cool"]).optional() });
const add = tool({
  description: "The sum of two numbers",
  inputSchema: z.object({ a: z.number(), b: z.number() }),
  execute: async ({ a, b }) => a + b,
});

const provider = (endpoint, more = {}) =>
  createOpenAICompatible({ name: "ours", baseURL: endpoint.url, apiKey: endpoint.key, supportsStructuredOutputs: true, ...more });
const model = (endpoint) => provider(endpoint)(endpoint.model);
const short = (endpoint, more) => ({ model: model(endpoint), maxOutputTokens: 6, maxRetries: 0, ...more });
const able = (endpoint, more) => ({ model: model(endpoint), maxOutputTokens: 120, temperature: 0, maxRetries: 0, ...more });

usage("generateText", async (endpoint) => {
  const { text, usage } = await generateText(short(endpoint, { prompt: "Hello" }));
  assert.ok(text && usage.outputTokens);
});

usage("generateText with instructions and a history", async (endpoint) => {
  const messages = [{ role: "user", content: "Hello" }];
  const first = await generateText(short(endpoint, { instructions: "Be brief.", messages }));
  messages.push(...first.response.messages, { role: "user", content: "And then?" });
  assert.ok((await generateText(short(endpoint, { messages }))).text);
});

usage("streamText", async (endpoint) => {
  let text = "";
  for await (const delta of streamText(short(endpoint, { prompt: "Hello" })).textStream) text += delta;
  assert.ok(text);
});

usage("streamText, usage of a provider with includeUsage", async (endpoint) => {
  const asked = { ...short(endpoint, { prompt: "Hello" }), model: provider(endpoint, { includeUsage: true })(endpoint.model) };
  const run = streamText(asked);
  await run.consumeStream();
  assert.ok((await run.usage).outputTokens);
});

usage("user's text parts", async (endpoint) => {
  const content = [{ type: "text", text: "Hello," }, { type: "text", text: "you." }];
  assert.ok((await generateText(short(endpoint, { messages: [{ role: "user", content }] }))).text);
});

usage("tool loop with stopWhen", async (endpoint) => {
  const run = await generateText(able(endpoint, { prompt: SUM, tools: { add }, stopWhen: stepCountIs(3) }));
  assert.equal(run.text, "It is 5.");
  assert.equal(run.steps.length, 2);
});

usage("tool loop, then a further question", async (endpoint) => {
  const messages = [{ role: "user", content: SUM }];
  const first = await generateText(able(endpoint, { messages, tools: { add }, stopWhen: stepCountIs(3) }));
  const said = first.responseMessages ?? first.steps.flatMap((step) => step.response.messages);
  messages.push(...said, { role: "user", content: "Sure? [[Yes.]]" });
  assert.equal((await generateText(able(endpoint, { messages, tools: { add } }))).text, "Yes.");
});

usage("tool loop, streamed", async (endpoint) => {
  const run = streamText(able(endpoint, { prompt: SUM, tools: { add }, stopWhen: stepCountIs(3) }));
  const kinds = [];
  for await (const part of run.fullStream) kinds.push(part.type);
  assert.ok(kinds.includes("tool-call") && kinds.includes("tool-result"));
  assert.equal(await run.text, "It is 5.");
});

usage("a tool without execute: the call is given back", async (endpoint) => {
  const ask = tool({ inputSchema: z.object({ a: z.number(), b: z.number() }) });
  const run = await generateText(able(endpoint, { prompt: SUM, tools: { add: ask } }));
  assert.deepEqual(run.toolCalls[0].input, { a: 2, b: 3 });
});

usage("toolChoice required", async (endpoint) => {
  const light = tool({ inputSchema: z.object({ is_on: z.boolean() }), execute: async () => "done" });
  const run = await generateText(able(endpoint, { prompt: "Hello", tools: { light }, toolChoice: "required" }));
  assert.equal(run.toolCalls[0].toolName, "light");
});

usage("toolChoice names a tool", async (endpoint) => {
  const light = tool({ inputSchema: z.object({ is_on: z.boolean() }), execute: async () => "done" });
  const toolChoice = { type: "tool", toolName: "light" };
  const run = await generateText(able(endpoint, { prompt: "Hello", tools: { light, add }, toolChoice }));
  assert.equal(run.toolCalls[0].toolName, "light");
});

usage("ToolLoopAgent", async (endpoint) => {
  const agent = new ToolLoopAgent({ model: model(endpoint), tools: { add } });
  assert.equal((await agent.generate({ prompt: SUM })).text, "It is 5.");
});

usage("Output.object", async (endpoint) => {
  const run = await generateText(able(endpoint, { prompt: "Hello", output: Output.object({ schema: Mood }) }));
  assert.equal(typeof run.output.is_friendly, "boolean");
});

usage("Output.object, streamed", async (endpoint) => {
  const run = streamText(able(endpoint, { prompt: "Hello", output: Output.object({ schema: Mood }) }));
  await run.consumeStream();
  assert.equal(typeof (await run.output).is_friendly, "boolean");
});

usage("Output.object without supportsStructuredOutputs", async (endpoint) => {
  const asked = able(endpoint, { prompt: 'Hi [[{"is_friendly": true}]]', output: Output.object({ schema: Mood }) });
  const run = await generateText({ ...asked, model: provider(endpoint, { supportsStructuredOutputs: false })(endpoint.model) });
  assert.equal(run.output.is_friendly, true);
});

usage("Output.array, Output.choice", async (endpoint) => {
  const choice = Output.choice({ options: ["warm", "cool"] });
  assert.match((await generateText(able(endpoint, { prompt: "Hello", output: choice }))).output, /warm|cool/);
  const element = z.object({ is_friendly: z.boolean() });
  const prompt = 'Hi [[{"elements": [{"is_friendly": true}]}]]';
  assert.equal((await generateText(able(endpoint, { prompt, output: Output.array({ element }) }))).output.length, 1);
});

usage("settings: topP, seed, stopSequences, penalties", async (endpoint) => {
  const settings = { topP: 0.9, seed: 1, stopSequences: ["END"], presencePenalty: 0.1, frequencyPenalty: 0.1 };
  assert.ok((await generateText(short(endpoint, { prompt: "Hello", ...settings }))).text);
});

usage("providerOptions: user, reasoningEffort", async (endpoint) => {
  const providerOptions = { ours: { user: "ada" } };
  assert.ok((await generateText(short(endpoint, { prompt: "Hello", providerOptions }))).text);
});

usage("completionModel", async (endpoint) => {
  const asked = { ...short(endpoint, { prompt: "Once upon" }), model: provider(endpoint).completionModel(endpoint.model) };
  assert.ok((await generateText(asked)).text);
});

usage("embedMany", async (endpoint) => {
  const found = await embedMany({ model: provider(endpoint).embeddingModel(endpoint.model), values: ["a", "b"], maxRetries: 0 });
  assert.equal(found.embeddings.length, 2);
});

usage("abortSignal ends a stream", async (endpoint) => {
  const control = new AbortController();
  const run = streamText(short(endpoint, { prompt: "Hello", maxOutputTokens: 300, abortSignal: control.signal, onError() {} }));
  for await (const part of run.fullStream) if (part.type === "text-delta") control.abort();
  assert.ok((await generateText(short(endpoint, { prompt: "Hello" }))).text);
});

usage("an error tells the endpoint's sentence", async (endpoint) => {
  const asked = { ...short(endpoint, { prompt: "Hello" }), model: provider(endpoint)("nobody") };
  assert.match((await thrown(Error, () => generateText(asked))).message, /nobody/);
});

await runAll();
