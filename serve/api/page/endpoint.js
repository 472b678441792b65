"use strict";
// Asking the endpoint. Nothing in this file touches the page.

class EndpointError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// What the browser stores for this endpoint; several endpoints may share one address, each at its own path.
const kept = {
  name: (name) => `rayconteur ${location.pathname} ${name}`,
  get(name) {
    try { return localStorage.getItem(kept.name(name)) ?? ""; } catch { return ""; }  // Storage may be forbidden.
  },
  set(name, value) {
    try { localStorage.setItem(kept.name(name), value); } catch { /* It then lasts as long as the page. */ }
  },
};

let apiKey = kept.get("key");

// Throws EndpointError with what the API said, or AbortError.
async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new EndpointError("The endpoint cannot be reached.");
  }
  if (!response.ok) throw new EndpointError(await errorMessage(response), response.status);
  return response;
}

async function errorMessage(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `The endpoint answered ${response.status}. ${text.slice(0, 300)}`;
  }
}

async function listModels() {
  return (await (await request("v1/models")).json()).data;
}

// The pieces of a reply as they come: {text, thought, reason, sources}, the last two in the piece that it ends with.
async function* reply(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new EndpointError(chunk.error.message);
    const choice = chunk.choices[0];
    if (choice) {
      const { content, reasoning_content } = choice.delta;
      const [reason, sources] = [choice.finish_reason, chunk.sources ?? []];
      yield { text: content ?? "", thought: reasoning_content ?? "", reason, sources };
    }
  }
  throw new EndpointError("The endpoint ended the reply before it was complete.");
}

// The data of server-sent events, until they end or break off.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const endUnlessStopped = (error) => {
    if (error.name === "AbortError") throw error;
    return { done: true };
  };
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(endUnlessStopped);
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}
