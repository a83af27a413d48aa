// SPDX-License-Identifier: LGPL-2.1-or-later
// The dashboard: its views, and the header that shows machine, health and connection.

import {health as getHealth} from "./calls.js";
import {follow} from "./events.js";
import * as graph from "./shared/graph.js";
import * as health from "./shared/health.js";
import * as history from "./shared/history.js";
import * as modules from "./shared/modules.js";
import * as rules from "./shared/rules.js";
import * as surface from "./shared/surface.js";
import {keepInSight, lookAgain, start, told} from "./shared/views.js";
import * as store from "./store.js";
import {forget} from "./token.js";

const main = document.getElementById("main");
const live = document.getElementById("live");
const status = document.getElementById("status");

async function summary() {
  try {
    const found = await getHealth();
    const bad = found.checks.filter((one) => one.status !== "ok").length;
    status.className = {ok: "", degraded: "chip warn", failing: "chip bad"}[found.status];
    status.textContent = bad ? `${bad} ${found.status}` : "";
    document.getElementById("machine").textContent = `${location.hostname} · ${found.release}`;
  } catch {
    status.className = "chip bad";
    status.textContent = "away";
  }
  keepInSight();
}

const CONNECTION = {connecting: "connecting", live: "live", reconnecting: "reconnecting"};
let before = "";

function connection(state) {
  live.textContent = CONNECTION[state];
  live.className = state;
  // Events missed while disconnected are replayed if possible; otherwise a refresh shows their effects.
  if (state === "live" && before === "reconnecting") lookAgain();
  before = state;
}

document.getElementById("forget").addEventListener("click", () => {
  forget();
  location.reload();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
start({views: {modules, graph, health, history, surface, store, config: rules}, summary});
follow(told, connection);
