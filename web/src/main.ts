// The page: two tabs over one service.

import { Dashboard } from "./dashboard";
import { byId } from "./dom";
import { takesInstruction, watchHealth } from "./health";
import { keyDialog } from "./key";
import { Playground } from "./playground";
import { Service } from "./service";
import { tabs } from "./tabs";
import { theme } from "./theme";

const DASHBOARD = "#dashboard";
const names = ["playground", "dashboard"];

const service = new Service(new URL(".", document.baseURI).href.replace(/\/$/, ""));
const askKey = keyDialog(service, () => {
  void showInstruction();
  dashboard.retry();
});
const playground = new Playground(service, askKey);
const dashboard = new Dashboard(service, askKey);

const select = tabs(
  names.map((name) => byId(`tab-${name}`)),
  (index) => {
    names.forEach((name, each) => (byId(name).hidden = each !== index));
    void dashboard.visible(index === 1);
    // The address of the tab; a request in the fragment is kept until the other tab is opened.
    const page = window.location.href.split("#", 1)[0]!;
    if (index === 1) window.history.replaceState(null, "", page + DASHBOARD);
    else if (window.location.hash === DASHBOARD) window.history.replaceState(null, "", page);
  },
);

async function showInstruction(): Promise<void> {
  const takes = await takesInstruction(service);
  byId("instruction-field").hidden = takes !== true;
}

async function follow(): Promise<void> {
  if (window.location.hash === DASHBOARD) select(1);
  else {
    await playground.restore();
    if (window.location.hash) select(0);
  }
}

theme(() => dashboard.redraw());
void watchHealth(service);
void showInstruction();
void follow();
window.addEventListener("hashchange", () => void follow());
