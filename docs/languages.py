"""Gives each language of the site its own navigation, and a switch to the same page in the other language.

MkDocs calls the functions named ``on_...``. A folder ``zh`` holds the Chinese versions of the pages next to
it: guide/zh/faults.md is guide/faults.md in Chinese. The section 中文 in mkdocs.yml lists the Chinese pages.
The Chinese navigation also lists the pages that are not translated, and leads to them in English.

The plugin mkdocs-static-i18n does this too, but it builds the whole site once per language, the Python
reference included, and wants the language in every page's file name or a folder per language.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from mkdocs.structure.nav import Link, Navigation, Section

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure import StructureItem
    from mkdocs.structure.pages import Page

SECTION = "中文"


class Language(NamedTuple):
    """What differs between the languages on every page."""

    code: str
    name: str
    home: str
    palette: tuple[str, str]  # labels of the buttons that switch to dark and to light mode


ENGLISH = Language("en", "English", "index.md", ("Switch to dark mode", "Switch to light mode"))
CHINESE = Language("zh", "中文", "zh/index.md", ("切换到深色模式", "切换到浅色模式"))
CHINESE_DESCRIPTION = "用你手头的电脑，从零训练小图片的分类器"
UNTRANSLATED = "（英文）"
# How the Chinese navigation names what exists in English only. What is not listed keeps its English title.
TITLES = {
    "Start": "开始",
    "Coming from another library": "从其他库迁移",
    "Your own folder": "自己的文件夹",
    "Data and labels": "数据和标签",
    "Forms of data and labels": "数据和标签的形式",
    "Train better": "改进训练",
    "Compare fairly: seeds, tests, folds": "公平比较：种子、检验、交叉验证",
    "New classes from a trained network": "用训练好的网络学习新类别",
    "Extend": "扩展",
    "A network of your own": "自己的网络",
    "A loss and an augmentation of your own": "自己的损失函数和数据增强",
    "Classes of unequal size": "类别数量不均衡",
    "Choosing a recipe": "选择配方",
    "Let thumbnet find the settings": "自动寻找设置",
    "From Python and in notebooks": "在 Python 和 notebook 中使用",
    "The corrections file, labels.csv": "标签更正文件 labels.csv",
    "Review labels in the browser": "在浏览器里核对标签",
    "Sort a folder of pictures": "整理一个图片文件夹",
    "Several labels per picture": "一张图片多个标签",
    "Use the model": "使用模型",
    "Export": "导出",
    "Serving": "部署服务",
    "Several GPUs and machines": "多块 GPU 与多台机器",
    "Reference": "参考",
    "Commands": "命令",
    "Recipes and settings": "配方和设置",
    "Results": "结果",
    "Platforms and speed": "平台与速度",
    "A quarter of an hour on a GPU": "GPU 上的一刻钟",
    "Reliability": "可靠性",
    "Project": "项目",
    "Architecture": "架构",
    "Notebook": "实验笔记",
    "Laboratory notebook": "概览",
    "The fast recipe": "fast 配方",
    "Tuning": "自动调参",
    "References": "对照",
    "Compared with other libraries": "与其他库比较",
    "How the fast recipe was chosen": "fast 配方是怎样选出来的",
    "Skipping easy pictures": "跳过简单的图片",
    "Augmentation and TTA": "数据增强与测试时增强",
    "Kernels": "算子",
    "Speed": "速度",
    "The service under load": "负载下的服务",
    "Training for a given time": "限时训练",
    "Wrong labels and new ones": "错误的标签与新的标签",
    "Unlike the training pictures": "与训练图片不相像的图片",
}


def on_nav(nav: Navigation, **_: Any) -> Navigation:
    """Let the links to the previous and the next page stay within a language."""
    for code in (ENGLISH.code, CHINESE.code):
        pages = [page for page in nav.pages if language_of(page).code == code]
        neighbours = zip([None, *pages[:-1]], [*pages[1:], None], strict=True)
        for page, (before, after) in zip(pages, neighbours, strict=True):
            page.previous_page, page.next_page = before, after
    return nav


def on_template_context(context: Any, **_: Any) -> Any:
    """Give pages without a language, such as 404.html, the English navigation."""
    context["nav"] = english_navigation(context["nav"])
    return context


def on_page_context(context: Any, page: Page, config: MkDocsConfig, nav: Navigation) -> Any:
    """Set up the theme for the page's language. MkDocs renders the pages one after the other."""
    language = language_of(page)
    other = CHINESE if language is ENGLISH else ENGLISH
    pages = {one.file.src_uri: one for one in nav.pages}
    same = pages.get(translated(page.file.src_uri))

    context["nav"] = chinese_navigation(nav) if language is CHINESE else english_navigation(nav)
    context["switch"] = {
        "url": (same or pages[other.home]).url,
        "code": other.code,
        "name": other.name,
        "title": (same or pages[other.home]).title,
    }
    config.theme["language"] = language.code
    for option, label in zip(config.theme["palette"], language.palette, strict=True):
        option["toggle"]["name"] = label
    if language is CHINESE:
        page.meta.setdefault("description", CHINESE_DESCRIPTION)
    # The theme links these in the head of the page, for search engines.
    versions = [(language, page), *([(other, same)] if same else [])]
    config.extra["alternate"] = [{"lang": of.code, "link": one.url} for of, one in versions]
    return context


def language_of(page: Page) -> Language:
    """The language of a page, by its folder."""
    return CHINESE if "zh" in PurePosixPath(page.file.src_uri).parts[:-1] else ENGLISH


def translated(path: str) -> str:
    """The path of a page in the other language, whether there is such a page or not."""
    *folders, name = PurePosixPath(path).parts
    folders = [one for one in folders if one != "zh"] if "zh" in folders else [*folders, "zh"]
    return "/".join([*folders, name])


def english_navigation(nav: Navigation) -> Navigation:
    """The navigation without the Chinese section."""
    items = [item for item in nav.items if item.title != SECTION]
    return Navigation(items, nav.pages)


def chinese_navigation(nav: Navigation) -> Navigation:
    """The Chinese section, then links to the English pages that are not translated."""
    (section,) = [item for item in nav.items if item.title == SECTION]
    there = {page.file.src_uri for page in nav.pages}
    links = (_links(item, there) for item in nav.items if item is not section)
    chinese = Navigation([*section.children, *(item for item in links if item)], nav.pages)
    chinese.homepage = next(page for page in nav.pages if page.file.src_uri == CHINESE.home)
    return chinese


def _links(item: Any, there: set[str]) -> StructureItem | None:
    """A link to an English page, or a section of such links; None for what has a Chinese version."""
    title = TITLES.get(item.title or "", item.title or "")
    if item.is_section:
        links = [link for child in item.children or () if (link := _links(child, there))]
        return Section(title + UNTRANSLATED, links) if links else None
    if item.is_page and translated(item.file.src_uri) in there:
        return None
    return Link(title, item.url)
