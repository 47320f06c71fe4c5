"""What can stand on a drawn screen and be asked for: words, icons with names, and words kept for scoring.

What it guarantees: a class number never changes (append only); no unseen label is ever drawn in training;
what is new in v1.3 occurs in no data of v1.2.

    >>> CLASSES[class_of("设置")].name("en")
    '设置'
    >>> CLASSES[class_of("search icon")].name("zh")
    '搜索图标'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from autoglm.training.actions import APPS, NEW_APPS, is_chinese

_CHINESE = (
    *("搜索", "返回", "首页", "我的", "消息", "发现", "关注", "推荐", "购物车", "订单", "收藏", "历史记录"),
    *("下载", "上传", "分享", "删除", "编辑", "保存", "取消", "确定", "下一步", "完成", "登录", "注册"),
    *("密码", "账号", "通知", "隐私", "安全中心", "关于手机", "帮助", "反馈", "语言", "声音", "亮度", "蓝牙"),
    *("电池", "存储空间", "字体大小", "壁纸", "深色模式", "飞行模式", "扫一扫", "付款码", "转账", "红包"),
    *("优惠券", "地址", "客服", "评论", "点赞", "发送", "联系人", "朋友圈", "直播", "附近", "酒店", "机票"),
    *("打车", "外卖", "导航", "播放列表"),
)
_ENGLISH = (
    *("Search", "Home", "Profile", "Messages", "Settings", "Cart", "Orders", "Saved", "History"),
    *("Download", "Share", "Delete", "Edit", "Save", "Cancel", "OK", "Next", "Done", "Sign in", "Sign up"),
    *("Password", "Account", "Privacy", "Security", "About", "Help", "Language", "Sound", "Display"),
    *("Battery", "Storage", "Network", "Bluetooth", "Dark mode", "Scan", "Pay", "Balance", "Coupons"),
    *("Address", "Support", "Send", "Contacts", "Nearby", "Hotels"),
)
# No training screen, question or clip ever has one of these: scores on them tell reading from recognising.
UNSEEN_LABELS: tuple[str, ...] = (
    *("钱包", "日记", "地铁", "相框", "天空", "信用卡", "手电筒", "时间", "声明", "历程"),
    *("Wallpaper", "Transfer", "Notices", "Trains", "Backup", "Center", "Photo", "Sounds", "Reset", "Mode"),
)
WORDS: tuple[str, ...] = (*APPS, *_CHINESE, *_ENGLISH)
NEW_WORDS: tuple[str, ...] = NEW_APPS

ICONS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "search": ("搜索图标", "search icon"),
        "back": ("返回图标", "back icon"),
        "home": ("主页图标", "home icon"),
        "person": ("个人图标", "profile icon"),
        "cart": ("购物车图标", "cart icon"),
        "heart": ("爱心图标", "heart icon"),
        "star": ("星星图标", "star icon"),
        "plus": ("加号图标", "plus icon"),
        "close": ("关闭图标", "close icon"),
        "menu": ("菜单图标", "menu icon"),
        "more": ("更多图标", "more icon"),
        "bell": ("铃铛图标", "bell icon"),
        "camera": ("相机图标", "camera icon"),
        "trash": ("垃圾桶图标", "trash icon"),
        "pencil": ("铅笔图标", "pencil icon"),
        "play": ("播放图标", "play icon"),
        "phone": ("电话图标", "phone icon"),
        "mail": ("信封图标", "mail icon"),
        "lock": ("锁图标", "lock icon"),
        "gear": ("齿轮图标", "gear icon"),
        "share": ("分享图标", "share icon"),
        "download": ("下载图标", "download icon"),
        "microphone": ("麦克风图标", "microphone icon"),
        "pin": ("定位图标", "location icon"),
    }
)


@dataclass(frozen=True)
class Label:
    """One class of things on a screen.

    Attributes:
        key: unique: the word itself, or ``icon:`` and the shape.
        chinese: what to call it in Chinese.
        english: the same in English; a word is called by itself in both.
    """

    key: str
    chinese: str
    english: str

    @property
    def is_icon(self) -> bool:
        """Whether it is a drawn shape, not a word."""
        return self.key.startswith("icon:")

    @property
    def is_chinese(self) -> bool:
        """Whether it is a Chinese word."""
        return is_chinese(self.key)

    def name(self, language: str) -> str:
        """Return its name in ``"zh"`` or ``"en"``."""
        return self.chinese if language == "zh" else self.english


# Class 0 is everything that nobody asks for.
CLASSES: tuple[Label, ...] = (
    Label("", "", ""),
    *(Label(word, word, word) for word in (*APPS, *NEW_APPS, *_CHINESE, *_ENGLISH)),
    *(Label(f"icon:{shape}", *names) for shape, names in ICONS.items()),
)
_NUMBERS: Mapping[str, int] = MappingProxyType(
    {name: i for i, label in enumerate(CLASSES) if i for name in (label.key, label.chinese, label.english)}
)


def class_of(name: str) -> int:
    """Return the number of the class with this key or name; 0 for none."""
    return _NUMBERS.get(name, 0)


def label_named(name: str) -> Label:
    """Return the class of this key or name, or a class of its own for a word that has none."""
    return CLASSES[class_of(name)] if class_of(name) else Label(name, name, name)
