// The interface's languages. A page adds its own words with register({en: {...}, zh: {...}}); t(key, ...args) gives the
// text in the chosen language, {0} standing for the first argument; an entry may also be a function of the arguments.

import { choice } from "./dom.js";

const KEPT = "tutelage.language";
export const LANGUAGES = { en: "English", zh: "中文" };

const dictionaries = {
  en: {
    "nav.label": "Rank", "nav.report": "Agreement", "nav.chat": "Chat", "nav.main": "Pages", "nav.skip": "To the content",
    "language": "Language", "theme": "Colours", "theme.auto": "Auto", "theme.light": "Light", "theme.dark": "Dark",
    "close": "Close", "cancel": "Cancel", "save": "Save", "copy": "Copy", "copied": "Copied.", "retry": "Try again",
    "offline": "The server cannot be reached. What you did is kept here; try again in a moment.",
    "sign.title": "Who are you?",
    "sign.pick": "Your name stands beside what you write. Take one, and keep the key that you are given.",
    "sign.name": "Name", "sign.start": "Begin", "sign.key": "Key", "sign.enter": "Enter",
    "sign.wrong": "The key in the address is not known here.",
    "sign.haveKey": "I have a key", "sign.noKey": "I am new here",
    "sign.keyOnly": "You were given a key, or an address that holds it. Paste the key here.",
    "sign.keyTitle": "Your key", "sign.yourKey": "Keep this key. It is shown once: with it you come back under your name from another browser.",
    "sign.kept": "I have kept it", "sign.out": "Not you? Leave",
  },
  zh: {
    "nav.label": "排序", "nav.report": "一致性", "nav.chat": "对话", "nav.main": "页面", "nav.skip": "跳到正文",
    "language": "语言", "theme": "配色", "theme.auto": "自动", "theme.light": "浅色", "theme.dark": "深色",
    "close": "关闭", "cancel": "取消", "save": "保存", "copy": "复制", "copied": "已复制。", "retry": "重试",
    "offline": "无法连接服务器。您所做的已保留在本页，请稍后再试。",
    "sign.title": "您是谁？",
    "sign.pick": "您的名字会与您写下的内容一起保存。请取一个名字，并保管好随后给您的密钥。",
    "sign.name": "名字", "sign.start": "开始", "sign.key": "密钥", "sign.enter": "进入",
    "sign.wrong": "网址中的密钥无效。",
    "sign.haveKey": "我有密钥", "sign.noKey": "我是新来的",
    "sign.keyOnly": "您应已收到一个密钥，或包含密钥的网址。请在此粘贴密钥。",
    "sign.keyTitle": "您的密钥", "sign.yourKey": "请保存此密钥。它只显示一次：凭它可以在别的浏览器中以同一名字继续。",
    "sign.kept": "我已保存", "sign.out": "不是您？退出",
  },
};

const listeners = [];
let current = pick();

function pick() {
  let kept = null;
  try { kept = localStorage.getItem(KEPT); } catch { /* storage may be off; the browser's language then decides */ }
  if (Object.hasOwn(LANGUAGES, kept)) return kept;
  return (navigator.languages ?? [navigator.language]).map((tag) => tag.slice(0, 2)).find((tag) => tag in LANGUAGES) ?? "en";
}

/** Add a page's words: {en: {key: text}, zh: {key: text}} (a module that exports both will do). */
export function register(more) {
  for (const tag of Object.keys(LANGUAGES)) Object.assign(dictionaries[tag], more[tag]);
}

/** The text of `key`; English where a language lacks it, the key itself where English does. */
export function t(key, ...args) {
  const entry = dictionaries[current][key] ?? dictionaries.en[key] ?? key;
  if (typeof entry === "function") return entry(...args);
  return entry.replace(/\{(\d)\}/g, (whole, i) => (i in args ? String(args[i]) : whole));
}

/** "en" or "zh". */
export function language() {
  return current;
}

/** Change the interface's language; kept for the next visit. */
export function setLanguage(tag) {
  if (!(tag in LANGUAGES)) return;
  current = tag;
  try { localStorage.setItem(KEPT, tag); } catch { /* then only for this page */ }
  document.documentElement.lang = tag;
  for (const listener of listeners) listener(tag);
}

/** Call `listener` after every change of language: draw the page again there. */
export function onLanguage(listener) {
  listeners.push(listener);
}

/** The switch between the languages. */
export function picker() {
  return choice(t("language"), current, LANGUAGES, setLanguage);
}

document.documentElement.lang = current;
