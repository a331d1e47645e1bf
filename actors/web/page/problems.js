// Problems of now, and faults that are over, as cards with what fixes them.

import { ask } from "./access.js";
import { $, fixLine, make, rebuild, toast } from "./dom.js";
import { ago, moment } from "./format.js";
import { state } from "./state.js";

function acknowledgeButton(path) {
  const button = make("button", { type: "button", className: "small", disabled: state.posts === "closed" }, "Acknowledge");
  button.addEventListener("click", async () => {
    try {
      if (await ask("POST", path)) toast("Acknowledged");
    } catch (error) {
      toast(`Not acknowledged: ${error.message}`);
    }
  });
  return make("p", {}, button);
}

export function problemCard(problem, now) {
  const time = make("time", {}, ago(problem.since_unix_s, now));
  time.title = moment(problem.since_unix_s);
  return make("li", {}, make("div", { className: "problem-head" }, make("span", { className: "code" }, problem.code),
    make("strong", {}, problem.what), time),
    problem.said ? make("p", {}, problem.said) : null, problem.means ? make("p", {}, problem.means) : null,
    problem.fix ? fixLine(problem.fix) : null, problem.acknowledge ? acknowledgeButton(problem.acknowledge) : null);
}

export function showProblems(status, now) {
  const minute = Math.floor(now / 60);
  $("problems-section").hidden = !status.problems.length;
  if (status.problems.length) rebuild($("problems"), [status.problems, minute, state.posts], () => status.problems.map((p) => problemCard(p, now)));
  const past = status.recent_faults.filter((fault) => !status.problems.some((p) => p.what === fault.what && p.since_unix_s === fault.since_unix_s));
  $("faults-section").hidden = !past.length;
  if (past.length) rebuild($("faults"), [past, minute], () => past.map((p) => problemCard(p, now)));
}
