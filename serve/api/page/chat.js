"use strict";
// The conversation.

const [talk, input, send, stop, said, picker] = ["talk", "input", "send", "stop", "said", "model"].map(byId);
const welcome = talk.querySelector(".welcome");
// A screen's keyboard has no Shift+Enter: there Enter starts a new line, and the button sends.
const isTouch = matchMedia("(pointer: coarse)").matches;
let exchanges = [];
let model = "";
let running = null;  // The AbortController of the reply that is being written.

// A question with its answer; what has no answer is shown, and left out of later requests.
class Exchange {
  constructor(question) {
    this.question = question;
    this.answer = "";
    this.root = byId("exchange").content.cloneNode(true).firstElementChild;
    this.part(".question .text").textContent = question;
    this.part(".edit").addEventListener("click", () => this.edit());
    this.part(".cancel").addEventListener("click", () => this.closeEdit());
    this.part(".again").addEventListener("click", () => ask(this));
    const form = this.part(".rewrite");
    const field = form.querySelector("textarea");
    form.addEventListener("submit", (event) => { event.preventDefault(); resend(this, field.value.trim()); });
    field.addEventListener("input", () => fit(field));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); this.closeEdit(); }
      submitOnEnter(event);
    });
  }

  part(selector) {
    return this.root.querySelector(selector);
  }

  edit() {
    const field = this.part(".rewrite textarea");
    field.value = this.question;
    this.root.classList.add("editing");
    this.part(".rewrite").hidden = false;
    this.part(".rewrite .hint").hidden = this === exchanges.at(-1);
    fit(field);
    field.focus();
  }

  closeEdit() {
    this.root.classList.remove("editing");
    this.part(".rewrite").hidden = true;
    this.part(".edit").focus();
  }

  begin(name) {
    this.root.classList.add("writing");
    this.part(".who").textContent = name;
    this.show(this.part(".answer .text"), "");
    this.thought = "";
    this.think("");
    this.part(".note").textContent = "";
    this.part(".error").textContent = "";
  }

  // Shows the answer as far as it has come, once a frame: laid out for every token, a long one would hold up the page.
  write(text, thought) {
    this.thought = thought;
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => following(() => {
      this.think(thought);
      this.show(this.part(".answer .text"), text);
    }));
  }

  think(thought) {
    this.part(".thinking").hidden = !thought;
    this.show(this.part(".thinking div"), thought);
  }

  // Appends where it can, which leaves alone what the reader has selected.
  show(shown, text) {
    const before = shown.firstChild?.data;
    if (before && text.startsWith(before)) shown.firstChild.appendData(text.slice(before.length));
    else shown.textContent = text;
  }

  end(note, failure) {
    cancelAnimationFrame(this.frame);
    this.root.classList.remove("writing");
    this.think(this.thought);
    this.show(this.part(".answer .text"), this.answer);
    this.part(".note").textContent = note;
    this.part(".error").textContent = failure;
    this.part(".again span").textContent = this.answer ? "Regenerate" : "Try again";
  }
}

function messagesFor(exchange) {
  const before = exchanges.slice(0, exchanges.indexOf(exchange)).filter((each) => each.answer);
  const turns = before.flatMap((each) => [
    { role: "user", content: each.question }, { role: "assistant", content: each.answer },
  ]);
  const system = systemPrompt() ? [{ role: "system", content: systemPrompt() }] : [];
  return [...system, ...turns, { role: "user", content: exchange.question }];
}

// Has the exchange answered, for the first time or anew; an answer that it had is kept until there is another.
async function ask(exchange) {
  if (running || !model || !settingsAreValid()) return;
  const controller = new AbortController();
  setRunning(controller);
  exchange.begin(model);
  if (!isTouch) input.focus();
  talk.scrollTop = talk.scrollHeight;
  const body = { model, messages: messagesFor(exchange), ...sampling() };
  let [text, thought, note, failure] = ["", "", "", null];
  try {
    for await (const piece of reply(body, controller.signal)) {
      text += piece.text;
      thought += piece.thought;
      exchange.write(text, thought);
      const named = piece.sources.map((source) => `[${source.id}] ${source.name}`).join(", ");
      if (named) note = `Sources: ${named}. `;
      if (piece.reason === "length") note += "The reply reached its length limit.";
    }
    if (!text.trim()) failure = new EndpointError("The model had nothing to say.");
  } catch (error) {
    if (error.name === "AbortError") note = text.trim() || exchange.answer ? "Stopped." : "Stopped before the reply began.";
    else failure = error;
  }
  if (running !== controller) return;  // It has been abandoned.
  if (text.trim()) exchange.answer = text;
  following(() => exchange.end(note, failure?.message ?? ""));
  said.textContent = `${exchange.answer} ${note}`;
  setRunning(null);
  if (failure?.status === 401) askForKey(failure.message, () => connect().then(() => ask(exchange)));
}

function submit() {
  const question = input.value.trim();
  if (!question || running || !model || !settingsAreValid()) return;
  input.value = "";
  add(question);
}

function resend(exchange, question) {
  if (!question || !model || !settingsAreValid()) return;
  abandon();
  for (const dropped of exchanges.splice(exchanges.indexOf(exchange))) dropped.root.remove();
  add(question);
}

function add(question) {
  const exchange = new Exchange(question);
  exchanges.push(exchange);
  welcome.remove();
  talk.append(exchange.root);
  ask(exchange);
}

function startOver() {
  abandon();
  exchanges = [];
  talk.replaceChildren(welcome);
  input.value = "";
  fitInput();
  input.focus();
}

// Lets go of the reply that is being written: nothing more of it is shown.
function abandon() {
  running?.abort();
  setRunning(null);
}

function setRunning(controller) {
  if (!controller && document.activeElement === stop) input.focus();  // The button is about to vanish.
  running = controller;
  stop.hidden = !controller;
  send.hidden = Boolean(controller);
  talk.setAttribute("aria-busy", String(Boolean(controller)));
  if (controller) said.textContent = `${model} is writing.`;
  fitInput();
}

// Follow the text as it grows, unless the reader has scrolled up.
function following(change) {
  const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 60;
  change();
  if (atEnd) talk.scrollTop = talk.scrollHeight;
}

function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function fitInput() {
  fit(input);
  send.disabled = !model || Boolean(running) || !input.value.trim();
}

function submitOnEnter(event) {
  // While an input method composes a character, Enter belongs to it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || isTouch) return;
  event.preventDefault();
  event.target.form.requestSubmit();
}

// Fills the picker: an adapter, which names its `parent`, stands below that model.
function showModels(models) {
  const names = models.map((each) => each.id);
  const roots = models.filter((each) => !names.includes(each.parent));
  picker.replaceChildren(...roots.flatMap((root) => {
    const adapters = models.filter((each) => each.parent === root.id);
    const group = document.createElement("optgroup");
    group.label = `Adapters of ${root.id}`;
    group.append(...adapters.map((each) => new Option(each.id)));
    return adapters.length ? [new Option(root.id), group] : [new Option(root.id)];
  }));
  picker.disabled = models.length < 2;
  choose([model, kept.get("model")].find((name) => names.includes(name)) ?? picker.options[0].value);
}

function choose(name) {
  model = name;
  picker.value = name;
  document.title = `${name} · Rayconteur`;
  fitInput();
}

async function connect() {
  byId("connection").hidden = true;
  try {
    showModels(await listModels());
  } catch (error) {
    picker.replaceChildren(new Option("not connected"));
    byId("connection").hidden = false;
    byId("connection").firstElementChild.textContent = error.message;
    if (error.status === 401) askForKey(error.message, connect);
  }
}

byId("composer").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
byId("new").addEventListener("click", startOver);
byId("connection").querySelector("button").addEventListener("click", connect);
picker.addEventListener("change", () => { choose(picker.value); kept.set("model", picker.value); });
stop.addEventListener("click", () => running?.abort());
input.addEventListener("input", fitInput);
input.addEventListener("keydown", submitOnEnter);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) running?.abort();
});
if (isTouch) byId("hint").remove();
connect().then(() => {
  const question = new URLSearchParams(location.search).get("q");
  if (!question) return;
  input.value = question;
  fitInput();
  submit();
});
