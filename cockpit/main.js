// SPDX-License-Identifier: LGPL-2.1-or-later
// The page in Cockpit: its views, and what it shows about access and connection.

import {follow} from "./bus.js";
import {health as getHealth} from "./calls.js";
import {translate} from "./events.js";
import * as graph from "./shared/graph.js";
import * as health from "./shared/health.js";
import * as history from "./shared/history.js";
import * as modules from "./shared/modules.js";
import * as rules from "./shared/rules.js";
import * as surface from "./shared/surface.js";
import {keepInSight, start, told} from "./shared/views.js";

const access = document.getElementById("access");
const status = document.getElementById("status");

async function summary() {
  try {
    const {checks, status: verdict} = await getHealth();
    const bad = checks.filter((one) => one.status !== "ok").length;
    status.className = {ok: "", degraded: "chip warn", failing: "chip bad"}[verdict];
    status.textContent = bad ? String(bad) : "";
    status.title = bad ? `${bad} findings, ${verdict}` : "";
  } catch {
    status.className = "chip bad";
    status.textContent = "away";
  }
  keepInSight();
}

// As Cockpit's own pages: administrative access that was turned on or off takes effect by a reload.
const superuser = cockpit.dbus(null, {bus: "internal"}).proxy("cockpit.Superuser", "/superuser");
let allowed = null;

function showAccess() {
  if (!superuser.valid || superuser.Current === "init") return;
  const now = superuser.Current !== "none";
  if (allowed !== null && allowed !== now) {
    location.reload();
    return;
  }
  allowed = now;
  access.textContent = now
    ? ""
    : "Limited access: you see what your user may see. Turn on administrative access to change modules and to read the history.";
}

superuser.addEventListener("changed", showAccess);
superuser.wait(showAccess);

follow(
  (...signal) => {
    const event = translate(...signal);
    if (event) told(...event);
  },
  (state) => told("daemon", {state}),
);
// Cockpit keeps a page that was left in its frame, and says so; the frame's document is visible all the time.
start({views: {modules, graph, health, history, surface, config: rules}, summary, visibility: cockpit});
