// Which view is shown: the part of the address after #, as in #/table/users or #/messages?from=812.

import { $ } from "./dom.js";

const views = new Map();
let shown = null, onShow = () => {};

// A view has an element of the page, and functions: show(path, query) once it appears, update() for each frame, hide() once
// another one is shown, and words for the title. The first one is shown where nothing else is asked for.
export function addView(name, view) {
  views.set(name, { name, ...view });
}

export function linkTo(view, part = "", query = {}) {
  const words = new URLSearchParams(Object.entries(query).filter(([, value]) => value));
  const path = part === "" ? view : `${view}/${encodeURIComponent(part)}`;
  return `#/${path}${words.size ? `?${words}` : ""}`;
}

function asked() {
  const [path, words] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [name, ...rest] = path.split("/");
  let part = rest.join("/");
  try {
    part = decodeURIComponent(part);
  } catch {  // somebody has typed it
  }
  return { view: views.get(name) ?? views.values().next().value, part, query: new URLSearchParams(words ?? "") };
}

function go() {
  if (location.hash && !location.hash.startsWith("#/")) return;  // the link to the content
  const { view, part, query } = asked(), before = shown;
  for (const other of views.values()) $(other.element).hidden = other !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view.name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (before !== view) before?.hide?.();
  shown = view;
  view.show?.(part, query);
  view.update?.();
  onShow();
  if (before) {  // a reader of a screen must hear that the page is another one
    scrollTo(0, 0);
    $("main").focus({ preventScroll: true });
  }
}

export const shownView = () => shown;

// `called` is called after each change of the view
export function startRouting(called) {
  onShow = called;
  addEventListener("hashchange", go);
  go();
}
