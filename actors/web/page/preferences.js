// Colours and time zone as the person has chosen them, kept by the browser.

import { $ } from "./dom.js";
import { setZone } from "./format.js";

const THEMES = ["system", "light", "dark"], ZONES = ["local", "utc"];

function read(name, choices) {
  try {
    const kept = localStorage.getItem(`walbridge-${name}`);
    return choices.includes(kept) ? kept : choices[0];
  } catch {  // the browser keeps nothing
    return choices[0];
  }
}

function keep(name, value, choices) {
  try {
    if (value === choices[0]) localStorage.removeItem(`walbridge-${name}`);
    else localStorage.setItem(`walbridge-${name}`, value);
  } catch {
  }
}

function apply(theme, zone) {
  document.documentElement.dataset.theme = theme;
  setZone(zone === "utc" ? "UTC" : undefined);
}

// `changed` is called when times must be written again
export function startPreferences(changed) {
  const theme = $("theme"), zone = $("zone");
  theme.value = read("theme", THEMES);
  zone.value = read("zone", ZONES);
  apply(theme.value, zone.value);
  theme.addEventListener("change", () => {
    keep("theme", theme.value, THEMES);
    apply(theme.value, zone.value);
  });
  zone.addEventListener("change", () => {
    keep("zone", zone.value, ZONES);
    apply(theme.value, zone.value);
    changed();
  });
}
