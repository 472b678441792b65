"use strict";
// The settings, which the browser keeps, and the key.

const byId = (id) => document.getElementById(id);
const [settingsDialog, keyDialog, keyInput] = [byId("settings"), byId("key"), byId("key-input")];
const settings = settingsDialog.querySelector("form");
let afterKey = () => {};

// The request's sampling fields; those left empty are left out.
function sampling() {
  const filled = [...settings.querySelectorAll("input[type=number]")].filter((field) => field.value);
  return Object.fromEntries(filled.map((field) => [field.name, field.valueAsNumber]));
}

function systemPrompt() {
  return settings.elements.system.value.trim();
}

// Shows what is wrong with a setting, if anything is.
function settingsAreValid() {
  if (settings.checkValidity()) return true;
  if (!settingsDialog.open) settingsDialog.showModal();
  return settings.reportValidity();
}

function applySettings() {
  document.documentElement.dataset.theme = settings.elements.theme.value;
  const isChanged = Boolean(systemPrompt())
    || [...settings.querySelectorAll("input[type=number]")].some((field) => field.value !== field.defaultValue);
  byId("open-settings").classList.toggle("changed", isChanged);
  byId("open-settings").title = isChanged ? "Settings (changed)" : "Settings";
}

function keepSettings() {
  kept.set("settings", JSON.stringify(Object.fromEntries(new FormData(settings))));
  applySettings();
}

function restoreSettings() {
  const found = JSON.parse(kept.get("settings") || "{}");
  for (const [name, value] of Object.entries(found)) {
    const field = settings.elements[name];
    if (field) field.value = value;
  }
  applySettings();
}

// Asks for a key, saying why; `then` runs when there is one.
function askForKey(why, then) {
  afterKey = then;
  byId("key-why").textContent = why;
  byId("key-row").hidden = false;
  keyInput.value = apiKey;
  settingsDialog.close();
  if (!keyDialog.open) keyDialog.showModal();
  keyInput.select();
}

settings.addEventListener("input", keepSettings);
settings.addEventListener("reset", () => setTimeout(keepSettings));  // The fields change after this event.
byId("open-settings").addEventListener("click", () => settingsDialog.showModal());
byId("close-settings").addEventListener("click", () => settingsDialog.close());
byId("change-key").addEventListener("click", () => askForKey("An empty field forgets the key.", () => connect()));
byId("cancel-key").addEventListener("click", () => keyDialog.close());
keyDialog.querySelector("form").addEventListener("submit", () => {
  apiKey = keyInput.value;
  kept.set("key", apiKey);
  afterKey();
});
byId("key-row").hidden = !apiKey;
restoreSettings();
