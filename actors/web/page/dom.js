// Makes and changes elements. Text from a server always stays text: nothing here turns it into markup.

export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let shown = new WeakMap();
// Rebuild a part of the page only when its data has changed, so that a selection or focus in it survives
export function rebuild(element, key, build) {
  const text = JSON.stringify(key);
  if (shown.get(element) === text) return;
  shown.set(element, text);
  element.replaceChildren(...build().filter(Boolean));
}

// Have all parts built again: the same data now reads differently
export function forgetBuilt() {
  shown = new WeakMap();
}

export function facts(...pairs) {
  return make("dl", { className: "facts" }, ...pairs.filter(Boolean).flatMap(([k, v]) => [make("dt", {}, k), make("dd", {}, v)]));
}

export function bar(label, ...parts) {
  const made = make("div", { className: "budget", role: "img", "aria-label": label });
  for (const [name, share] of parts) {
    const piece = make("i", { className: name });
    piece.style.width = `${Math.min(100, share * 100)}%`;
    if (share) piece.style.minWidth = "3px";
    made.append(piece);
  }
  return made;
}

export function fixLine(text) {
  const code = make("code", {}, text);
  return make("div", { className: "fix" }, make("pre", {}, code),
    make("button", { type: "button", className: "small", onclick: () => copy(code) }, "Copy"));
}

let toastTimer = 0;

export function toast(text) {
  put($("toast"), text);
  $("toast").classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => $("toast").classList.remove("shown"), 6000);
}

export async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    toast("Copied");
  } catch {  // browsers offer no clipboard without TLS, so select the text instead
    getSelection().selectAllChildren(element);
    toast("Selected: copy with the keyboard");
  }
}
