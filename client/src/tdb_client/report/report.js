// The report: one answer, whose data stand in the page.

import { drawAnswer } from "./answer.js";
import { byId } from "./elements.js";

const data = JSON.parse(byId("data").textContent);
byId("model").textContent = `· ${data.facts.model} · ${data.tokens.length} tokens`;
drawAnswer(byId("answer"), data);
